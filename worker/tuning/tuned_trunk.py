"""A base model of text generation of its own, changed in place by whatever tunes it.

The modules that `peft` puts into a model work row by row, so that a packed stream goes through
them as a padded batch would.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.trunk.batch import PackedBatch, Segment
from worker.trunk.trunk import Trunk
from worker.tuning import Tuning, named_weights

# Keys and values of one layer, [1, kv_heads, virtual tokens, head_dim] each.
LayerPast = tuple[Tensor, Tensor]


class LearntPrompt(Protocol):
    """Virtual tokens before each sequence: one of both is there."""

    def embeddings(self) -> Tensor | None:
        """Return [virtual tokens, hidden], to stand before a sequence's own."""

    def past(self) -> Sequence[LayerPast] | None:
        """Return what stands before a sequence in every layer."""


class TunedTrunk(Trunk):
    """See `Trunk`. Rows that name an adapter, whatever its name, are computed as tuned.

    All rows of a pass are of one model.

    Attributes:
        generator: source of dropout while gradients are computed; None: no adapter drops anything.
        dropouts: what drops, switched on and off with each pass.

    Args:
        trunk: whose model the tuning has changed; not to be used on its own any more.
        prompt: what the tuning puts before each sequence.
    """

    def __init__(self, trunk: Trunk, tuning: Tuning, prompt: LearntPrompt | None) -> None:
        super().__init__(trunk.model, trunk.tokenizer, trunk.directory)
        self.generator: torch.Generator | None = None
        self._tuning = tuning
        self._prompt = prompt
        self._start: tuple[str, dict[str, Tensor]] | None = None
        self.dropouts = [one for one in tuning.model.modules() if isinstance(one, nn.Dropout)]

    def hidden(self, batch: PackedBatch) -> Tensor:
        names = {segment.adapter for segment in batch.segments}
        if len(names) > 1:
            raise ValueError("a pass is of one model: the base, the tuned one or that at the start")
        if names == {None}:
            with self._tuning.as_base():
                return super().hidden(batch)
        if self._start is not None and names == {self._start[0]}:
            with self._as_at_start(self._start[1]):
                return self._tuned(batch)
        return self._tuned(batch)

    def keep_start(self, name: str) -> None:
        """Keep the weights as they are now under a name, too."""
        weights = named_weights(self._tuning.groups())
        self._start = name, {name: weight.detach().clone() for name, weight in weights}

    def _tuned(self, batch: PackedBatch) -> Tensor:
        self._set_dropout()
        if self._prompt is None:
            return super().hidden(batch)
        past = self._prompt.past()
        if past is not None:
            return self._behind_past(batch, past)
        embeddings = self._prompt.embeddings()
        assert embeddings is not None
        return self._behind_embeddings(batch, embeddings)

    @contextmanager
    def _as_at_start(self, start: dict[str, Tensor]) -> Iterator[None]:
        weights = list(named_weights(self._tuning.groups()))
        trained = [weight.data for _, weight in weights]
        for name, weight in weights:
            weight.data = start[name]
        try:
            yield
        finally:
            for (_, weight), own in zip(weights, trained, strict=True):
                weight.data = own

    def _set_dropout(self) -> None:
        is_dropping = torch.is_grad_enabled() and self.generator is not None
        for dropout in self.dropouts:
            dropout.train(is_dropping)
        if is_dropping and self.dropouts:
            # `peft` draws from torch's own generator: what it draws follows from the run's.
            device = self.generator.device if self.generator is not None else None
            seed = torch.randint(1 << 62, (), generator=self.generator, device=device)
            torch.manual_seed(int(seed))

    def _behind_embeddings(self, batch: PackedBatch, prompt: Tensor) -> Tensor:
        """Compute with the prompt's rows before those of each sequence that begins here."""
        own = self.model.get_input_embeddings()(batch.input_ids)
        prompt = prompt.to(own.dtype)
        length = prompt.shape[0]
        count = torch.arange(length, device=self.device)
        pieces: list[Tensor] = []
        positions: list[Tensor] = []
        segments: list[Segment] = []
        kept: list[range] = []
        end = 0
        for segment in batch.segments:
            rows = slice(segment.start, segment.end)
            start = end
            if _begins(segment):
                pieces.append(prompt)
                positions += [count, batch.position_ids[rows] + length]
                end += length
            else:
                positions.append(batch.position_ids[rows])
            pieces.append(own[rows])
            kept.append(range(end, end + segment.end - segment.start))
            end = kept[-1].stop
            segments.append(replace(segment, start=start, end=end))
        hidden = self._hidden(
            tuple(segments), torch.cat(positions), inputs_embeds=torch.cat(pieces)[None]
        )
        index = torch.tensor(list(chain.from_iterable(kept)), device=self.device)
        return hidden.index_select(0, index)

    def _behind_past(self, batch: PackedBatch, past: Sequence[LayerPast]) -> Tensor:
        """Compute with keys and values before those of each sequence that begins here."""
        length = past[0][0].shape[2]
        position_ids = batch.position_ids.clone()
        segments: list[Segment] = []
        for segment in batch.segments:
            if not _begins(segment):
                segments.append(segment)
                continue
            position_ids[segment.start : segment.end] += length
            if segment.cache is None:
                segments.append(replace(segment, cache=_FixedPast(past)))
                continue
            for layer_idx, (keys, values) in enumerate(past):
                segment.cache.append(layer_idx, keys, values)
            segments.append(segment)
        return self._hidden(tuple(segments), position_ids, input_ids=batch.input_ids[None])


class _FixedPast:
    """See `batch.Past`: it is the same for all, and nothing is added to it."""

    def __init__(self, past: Sequence[LayerPast]) -> None:
        self._past = past

    @property
    def length(self) -> int:
        return self._past[0][0].shape[2]

    def append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        old_keys, old_values = self._past[layer_idx]
        return (
            torch.cat([old_keys.to(keys.dtype), keys], dim=2),
            torch.cat([old_values.to(values.dtype), values], dim=2),
        )


def _begins(segment: Segment) -> bool:
    return segment.cache is None or segment.cache.length == 0
