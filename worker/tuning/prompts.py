"""What `peft` has learnt to put before each sequence of text generation."""

from collections.abc import Sequence
from typing import Any

import peft
from torch import Tensor

from worker.tuning.tuned_trunk import LayerPast


class PeftPrompt:
    """See `LearntPrompt`; with gradients where they are computed."""

    def __init__(self, model: peft.PeftModel) -> None:
        self._model = model
        config: Any = model.active_peft_config
        self._is_prefix = config.peft_type == peft.PeftType.PREFIX_TUNING

    def embeddings(self) -> Tensor | None:
        if self._is_prefix:
            return None
        return self._model.get_prompt(batch_size=1)[0]

    def past(self) -> Sequence[LayerPast] | None:
        if not self._is_prefix:
            return None
        cache: Any = self._model.get_prompt(batch_size=1)
        return [(layer.keys, layer.values) for layer in cache.layers]
