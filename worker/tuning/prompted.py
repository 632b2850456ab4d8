"""A model of a task with a learnt prompt before its input."""

from typing import Any

import peft
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn


class PromptedModel(nn.Module):
    """What `peft` makes of a model and a prompt, for inputs of any length.

    The prompt takes positions that a model with learnt ones has a fixed number of: an input that
    would not fit behind it is cut at its end.

    Attributes:
        is_off: the base model answers, without the prompt and with its first head.
    """

    def __init__(self, model: peft.PeftModel) -> None:
        super().__init__()
        self.peft = model
        self.is_off = False
        self._longest = _positions(model.get_base_model())
        if self._longest is not None:
            self._longest -= model.active_peft_config.num_virtual_tokens

    @property
    def config(self) -> Any:
        return self.peft.config

    def switch(self, *, is_off: bool) -> None:
        self.is_off = is_off
        for module in self.peft.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.enable_adapters(not is_off)

    def forward(self, **inputs: Any) -> Any:
        if self.is_off:
            return self.peft.get_base_model()(**inputs)
        if self._longest is None:
            return self.peft(**inputs)
        longest = self._longest
        return self.peft(
            **{
                name: value[:, :longest] if isinstance(value, Tensor) and value.ndim > 1 else value
                for name, value in inputs.items()
            }
        )


def _positions(model: nn.Module) -> int | None:
    """Return how many positions a model has learnt; None: they are computed."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Some models count from behind the position of padding.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None
