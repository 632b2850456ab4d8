"""Reading back what a tuning saved, onto the unmodified base model of its task."""

from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from app.domain.errors import InvalidInput
from worker.tasks import Task
from worker.tuning.prompted import PromptedModel

FULL_WEIGHTS_NAME = "model.safetensors"


def load_tuned(task: Task, directory: Path) -> nn.Module:
    """Return the tuned model in eval mode, without gradients, on the device of the task's model.

    The task's own model becomes part of it or is changed, and is not to be used on its own after.

    Args:
        directory: of the adapter, or of all weights where every weight was trained.

    Raises:
        InvalidInput: there is no readable adapter, or one of another base model.
    """
    try:
        if (directory / CONFIG_NAME).exists():
            tuned = load_peft(task.model, directory)
        else:
            tuned = load_full(task.model, directory)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InvalidInput(f"the tuned model does not load onto its base model: {error}") from error
    return tuned.eval().requires_grad_(False)


def load_peft(model: nn.Module, directory: Path) -> nn.Module:
    """Return a model with the adapter in it. Raises what reading raises."""
    # Without this file `peft` would look for a pickled one.
    if not (directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{SAFETENSORS_WEIGHTS_NAME} is missing")
    anything: Any = model
    found: peft.PeftModel = peft.PeftModel.from_pretrained(
        anything, str(directory), torch_device=str(next(model.parameters()).device)
    )
    return PromptedModel(found) if found.active_peft_config.is_prompt_learning else found


@torch.no_grad()
def load_full(model: nn.Module, directory: Path) -> nn.Module:
    """Return the model with all its weights replaced. Raises what reading raises."""
    tensors = load_file(directory / FULL_WEIGHTS_NAME)
    own = model.state_dict(keep_vars=True)
    if unknown := sorted(set(tensors) - set(own)):
        raise KeyError(f"the base model has no weight {unknown[0]}")
    # Weights that are one tensor under two names are saved under one of them.
    written = {own[name].data_ptr() for name in tensors}
    for name, tensor in own.items():
        if name in tensors:
            tensor.copy_(tensors[name])
        elif tensor.data_ptr() not in written:
            raise KeyError(f"the weight {name} is missing")
    return model
