"""Loading a base model with a task's head, and what tokens go into it."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidInput
from worker.trunk.device import DeviceProfile


def load_with_head(
    auto_class: Any, directory: Path, profile: DeviceProfile, **options: Any
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return a model of one of transformers' Auto classes, and its untrained modules.

    The head's weights are drawn from torch's generator: seed it before, for a run to be repeatable.

    Args:
        auto_class: such as `AutoModelForSequenceClassification`.
        options: for its configuration, such as `num_labels`.

    Raises:
        InvalidInput: the directory holds no model that can have such a head.
    """
    refuse_own_code(directory)
    try:
        model, info = auto_class.from_pretrained(
            directory,
            dtype=profile.dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"the base model cannot be loaded for this task: {error}") from error
    untrained = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    modules = {name.rpartition(".")[0] for name in untrained}
    return model.to(profile.device), tuple(sorted(modules - {""}))


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model. Raises: InvalidInput."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"the base model's tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_own_code(directory: Path) -> None:
    """Raises: InvalidInput, if a model wants to run code of its own or is quantized."""
    try:
        config = msgspec.json.decode((directory / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput("the base model has no readable config.json") from error
    if "auto_map" in config:
        raise InvalidInput("the base model needs code of its own, which is never run")
    if "quantization_config" in config:
        raise InvalidInput("the base model is quantized; convert it to plain safetensors")


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Return [rows, longest] int64, each row filled up at its end."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
