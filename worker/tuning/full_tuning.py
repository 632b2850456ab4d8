"""Every weight of a model is trained: for small models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.errors import InvalidInput
from worker.trunk.depth import all_are_frozen, block_of
from worker.tuning import WEIGHTS, WeightGroup, named_weights
from worker.tuning.loading import load_full

# Each weight takes 20 bytes while it is trained: itself, its gradient, AdamW's two averages and
# what it was at first, in float32. That is 10 GB for the largest model that is accepted.
MAX_WEIGHTS = 500_000_000


class FullTuning:
    """See `Tuning`.

    Args:
        model: changed in place; its weights become float32.
        frozen_layers: how many of the lowest blocks stay as they are, with the embeddings.
        frozen: weights that stay as they are, too.

    Raises:
        InvalidInput: the model is too large.
    """

    def __init__(
        self, model: PreTrainedModel, frozen_layers: int = 0, frozen: Sequence[Tensor] = ()
    ) -> None:
        size = sum(weight.numel() for weight in model.parameters())
        if size > MAX_WEIGHTS:
            raise InvalidInput(
                f"the base model has {size:,} weights; up to {MAX_WEIGHTS:,} can all be trained: "
                "choose an adapter instead, such as lora",
                param="tunesmith.adapter.type",
            )
        self.model: nn.Module = model.float().requires_grad_(True)  # type: ignore[no-untyped-call]
        self._model = model
        if frozen_layers:
            self._freeze(frozen_layers)
        for kept in frozen:
            kept.requires_grad_(False)
        # Beside the model itself, since the head was drawn and is on no disk.
        self._base = {
            name: weight.detach().to("cpu", copy=True) for name, weight in self._trained()
        }

    def groups(self) -> Sequence[WeightGroup]:
        return [WeightGroup(list(self._trained()))]

    def _freeze(self, frozen_layers: int) -> None:
        """Freeze what lies below; what is in no block lies above if it comes after the blocks."""
        has_begun = False
        for name, weight in self.model.named_parameters():
            block = block_of(name)
            has_begun = has_begun or block is not None
            weight.requires_grad_(has_begun if block is None else block >= frozen_layers)
        if not any(block_of(name) is not None for name, _ in self.groups()[0].weights):
            raise all_are_frozen(frozen_layers)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        tuned: dict[str, Tensor] = {}
        for name, weight in self._trained():
            tuned[name] = weight.data
            weight.data = self._base[name].to(weight.device)
        try:
            yield
        finally:
            for name, weight in self._trained():
                weight.data = tuned[name]

    def before_update(self, step: int) -> Tensor | None:
        return None

    def after_update(self, step: int) -> None:
        return

    def save(self, directory: Path, base_model_name: str) -> None:
        # One file, as `load_full` reads it.
        self._model.save_pretrained(directory, max_shard_size="1TB", save_original_format=False)

    def load_adapter(self, directory: Path) -> None:
        try:
            load_full(self.model, directory)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise InvalidInput("the model to start from does not fit its base model") from error

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {WEIGHTS: {name: weight.detach() for name, weight in named_weights(self.groups())}}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, weight in named_weights(self.groups()):
            weight.copy_(tensors[WEIGHTS][name])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (one for one in self._model.named_parameters() if one[1].requires_grad)
