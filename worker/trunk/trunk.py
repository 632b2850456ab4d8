"""A base model in memory: frozen, computing packed batches, with adapters attached."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidInput
from worker.trunk.arrangement import Arrangement, reordered
from worker.trunk.batch import PackedBatch, Segment, SequenceRows, pack
from worker.trunk.cache import SequenceCache
from worker.trunk.decoder import Decoder
from worker.trunk.lora import LoraAdapter, LoraPair, LoraSlotsLinear
from worker.trunk.lora_update import LoraUpdate
from worker.trunk.products import Products, product
from worker.trunk.prompt import PromptAdapter
from worker.trunk.routing import Routing

# `half`: the same numbers in fewer bytes; `int8`: rounded.
Packing = Literal["half", "int8"]


class Trunk:
    """The frozen base model. One thread uses it at a time.

    Attributes:
        model: in eval mode, without gradients.
        head_weight: the output embedding, [vocab, hidden].
        directory: where it was loaded from.
        decoder: computes in the place of transformers' own forward pass where there are no
            gradients, as `packed_head` does for the head; `worker.trunk.quicker` sets them.
        packing: what the two compute with, if not with the model's own weights.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.directory = directory
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.head_weight: Tensor = head.weight
        self._routing = Routing()
        self._arrangement = Arrangement(self.dtype)
        self.decoder: Decoder | None = None
        self.packed_head: Products | None = None
        self.packing: Packing | None = None
        self._noises: dict[str, tuple[float, torch.Generator]] = {}
        self._adapters: dict[str, LoraAdapter] = {}
        self._prompts: dict[str, SequenceCache] = {}
        self._generators: dict[str, torch.Generator] = {}

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_weight.dtype

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def routing(self) -> Routing:
        """Which rows of the pass that is computed go through which adapter."""
        return self._routing

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """What the dropout of attached adapters is drawn from."""
        return tuple(self._generators.values())

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the attached adapters."""
        return (*self._adapters, *self._prompts)

    @cached_property
    @torch.no_grad()
    def cache_bytes_per_token(self) -> int:
        """Memory of one token of one sequence in a `SequenceCache`; found by computing a token."""
        cache = SequenceCache(self.num_layers, 1)
        self._try_out(cache)
        return cache.bytes_per_token

    def new_cache(self, capacity: int = 128, adapter: str | None = None) -> SequenceCache:
        """Return a cache for one sequence, with room for `capacity` tokens at first.

        It is empty, unless the sequence is of an adapter that is a prompt.
        """
        if adapter in self._prompts:
            return self._prompts[adapter].copy(capacity)
        return SequenceCache(self.num_layers, capacity)

    def attach_prompt(self, name: str, prompt: PromptAdapter) -> None:
        """Let `new_cache` begin with a prompt for sequences of this name.

        Raises:
            InvalidInput: the prompt was made for another base model.
        """
        if name in self.adapters:
            raise ValueError(f"an adapter named {name!r} is attached already")
        try:
            self._prompts[name] = self._cache_of(prompt)
        except (RuntimeError, IndexError, ValueError) as error:
            raise InvalidInput("the prompt was made for a base model of another shape") from error

    def attach(
        self, name: str, adapter: LoraAdapter, generator: torch.Generator | None = None
    ) -> None:
        """Make an adapter's update available to segments that name it.

        The tensors are shared, not copied, if they are on this device already.

        Args:
            name: what segments call it; must not be attached yet.
            adapter: its weights.
            generator: source of its dropout while gradients are computed; None drops nothing.

        Raises:
            InvalidInput: the adapter was made for another base model.
        """
        if name in self.adapters:
            raise ValueError(f"an adapter named {name!r} is attached already")
        self._adapters[name] = adapter
        dropout = adapter.spec.dropout if generator is not None else 0.0
        if generator is not None and dropout > 0:
            self._generators[name] = generator
        updates: dict[object, LoraUpdate] = {}
        try:
            for path, pair in adapter.weights.items():
                on_device = LoraPair(pair.a.to(self.device), pair.b.to(self.device))
                slots = self._slots(path)
                slots.add(name, on_device, adapter.scaling, dropout, generator)
                updates[slots] = slots.update_of(name)
        except Exception:
            # Also where the device has no memory left: nothing is kept of half an adapter.
            self.detach(name)
            raise
        self._arrangement.add(name, updates)

    def add_noise(self, name: str, alpha: float, generator: torch.Generator) -> None:
        """Disturb the embeddings of segments of this name while gradients are computed.

        NEFTune (Jain et al. 2023, https://arxiv.org/abs/2310.05914): uniform noise of up to
        alpha / sqrt(tokens x width), by the length of each segment.
        """
        self._noises[name] = alpha, generator

    def detach(self, name: str) -> None:
        """Forget an adapter; one that is not attached is not an error."""
        self._noises.pop(name, None)
        self._generators.pop(name, None)
        self._prompts.pop(name, None)
        self._arrangement.remove(name)
        if self._adapters.pop(name, None) is None:
            return
        for module in self.model.modules():
            if isinstance(module, LoraSlotsLinear):
                module.remove(name)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last layer's normalised rows, [tokens, hidden], in the trunk's dtype."""
        if self._noises and torch.is_grad_enabled():
            embeddings = self.disturbed_embeddings(batch)
            return self._hidden(batch.segments, batch.position_ids, inputs_embeds=embeddings[None])
        places = None
        if not torch.is_grad_enabled():
            # What the last step looked at may have to make room.
            self._routing.restore(())
            batch, places = reordered(batch, self._arrangement.order(batch.segments))
        rows = self._hidden(batch.segments, batch.position_ids, input_ids=batch.input_ids[None])
        return rows if places is None else rows.index_select(0, places)

    def disturbed_embeddings(self, batch: PackedBatch) -> Tensor:
        """Return [tokens, width], with its noise in every segment that has one."""
        embeddings: Tensor = self.model.get_input_embeddings()(batch.input_ids)
        rows: list[Tensor] = []
        for segment in batch.segments:
            part = embeddings[segment.start : segment.end]
            if segment.adapter in self._noises:
                alpha, generator = self._noises[segment.adapter]
                bound = alpha / (part.shape[0] * part.shape[1]) ** 0.5
                noise = torch.empty(part.shape, device=part.device)
                part = part + noise.uniform_(-bound, bound, generator=generator).to(part.dtype)
            rows.append(part)
        return torch.cat(rows)

    def logits(self, hidden_rows: Tensor) -> Tensor:
        """Return [rows, vocab] float32 for `hidden_rows` [rows, hidden]."""
        if torch.is_grad_enabled():
            return torch.nn.functional.linear(hidden_rows, self.head_weight).float()
        if self.packed_head is not None:
            return self.packed_head(hidden_rows)
        return product(hidden_rows, self.head_weight).float()

    def _hidden(
        self, segments: Sequence[Segment], position_ids: Tensor, **inputs: Tensor
    ) -> Tensor:
        """Return [tokens, hidden] for `input_ids` [1, tokens] or `inputs_embeds`."""
        has_gradients = torch.is_grad_enabled()
        arrangement = None if has_gradients else self._arrangement
        self._routing.set(segments, position_ids.shape[0], self.device, arrangement)
        if self.decoder is not None and not has_gradients:
            embeddings = inputs.get("inputs_embeds")
            if embeddings is None:
                embeddings = self.model.get_input_embeddings()(inputs["input_ids"])
            return self.decoder.hidden(embeddings[0], position_ids, segments)
        output = self.model.base_model(
            **inputs, position_ids=position_ids[None], use_cache=False, segments=segments
        )
        rows: Tensor = output.last_hidden_state[0]
        return rows

    @torch.no_grad()
    def _cache_of(self, prompt: PromptAdapter) -> SequenceCache:
        """Return the keys and values of a prompt."""
        if prompt.past is not None:
            if len(prompt.past) != self.num_layers:
                raise ValueError("a prompt has keys and values for every layer")
            cache = SequenceCache(self.num_layers, prompt.past[0][0].shape[2])
            for layer_idx, (keys, values) in enumerate(prompt.past):
                held = (one.to(self.device, self.dtype) for one in (keys, values))
                cache.append(layer_idx, *held)
        else:
            assert prompt.embeddings is not None
            embeddings = prompt.embeddings.to(self.device, self.dtype)
            cache = SequenceCache(self.num_layers, len(embeddings))
            rows = Segment(0, len(embeddings), None, cache)
            positions = torch.arange(len(embeddings), device=self.device)
            self._hidden((rows,), positions, inputs_embeds=embeddings[None])
        self._try_out(cache.copy())
        return cache

    def _try_out(self, cache: SequenceCache) -> None:
        """Compute a token behind a cache. Raises: RuntimeError, unless their shapes agree."""
        self.hidden(pack([SequenceRows([0], None, cache)], self.device))

    def _slots(self, path: str) -> LoraSlotsLinear:
        """Return the LoRA layer at a path, wrapping the linear layer there if it is plain."""
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            module = None
        if isinstance(module, LoraSlotsLinear):
            return module
        if not isinstance(module, nn.Linear):
            raise InvalidInput(f"the base model has no linear layer {path!r}")
        if module is self.model.get_output_embeddings():  # type: ignore[no-untyped-call]
            # The losses and the sampler take its weight as it is: an update would be ignored.
            raise InvalidInput(f"the output layer {path!r} cannot be adapted")
        wrapped = LoraSlotsLinear(module, self._routing)
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, wrapped)
        return wrapped
