"""Every weight of a model is trained: for small models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.errors import InvalidInput
from worker.tuning import WEIGHTS, WeightGroup, named_weights
from worker.tuning.loading import load_full

# Each weight takes 20 bytes while it is trained: itself, its gradient, AdamW's two averages and
# what it was at first, in float32. That is 10 GB for the largest model that is accepted.
MAX_WEIGHTS = 500_000_000


class FullTuning:
    """See `Tuning`.

    Args:
        model: changed in place; its weights become float32.

    Raises:
        InvalidInput: the model is too large.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        size = sum(weight.numel() for weight in model.parameters())
        if size > MAX_WEIGHTS:
            raise InvalidInput(
                f"the base model has {size:,} weights; up to {MAX_WEIGHTS:,} can all be trained: "
                "choose an adapter instead, such as lora",
                param="tunesmith.adapter.type",
            )
        self.model: nn.Module = model.float().requires_grad_(True)  # type: ignore[no-untyped-call]
        self._model = model
        # Beside the model itself, since the head was drawn and is on no disk.
        self._base = {
            name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()
        }

    def groups(self) -> Sequence[WeightGroup]:
        return [WeightGroup(list(self.model.named_parameters()))]

    @contextmanager
    @torch.no_grad()
    def as_base(self) -> Iterator[None]:
        tuned: dict[str, Tensor] = {}
        for name, weight in self.model.named_parameters():
            tuned[name] = weight.data
            weight.data = self._base[name].to(weight.device)
        try:
            yield
        finally:
            for name, weight in self.model.named_parameters():
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
