"""Adapters that are served alone: added to the weights of a base model that no one else uses."""

from pathlib import Path
from typing import Any

import peft
from safetensors import SafetensorError

from app.domain.errors import InvalidInput
from worker.trunk.peft_format import CONFIG_NAME
from worker.trunk.quicker import use_decoder
from worker.trunk.trunk import Trunk
from worker.tuning.loading import load_full, load_peft


def merge_into(trunk: Trunk, directory: Path) -> Trunk:
    """Return a trunk that computes as tuned, made from one that no one else uses.

    Its weights are changed, so that nothing may hold copies of them yet.

    Raises:
        InvalidInput: there is no readable adapter, or one of another base model.
    """
    model: Any = trunk.model
    try:
        if not (directory / CONFIG_NAME).exists():
            load_full(model, directory)
            merged = model
        else:
            adapted: Any = load_peft(model, directory)
            if not isinstance(adapted, peft.PeftModel):
                raise InvalidInput("a learnt prompt cannot be added to weights")
            merged = adapted.merge_and_unload(safe_merge=True)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InvalidInput(f"the adapter does not load onto its base model: {error}") from error
    tuned = Trunk(merged.eval().requires_grad_(False), trunk.tokenizer, trunk.directory)
    use_decoder(tuned)
    return tuned
