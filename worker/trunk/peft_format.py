"""Adapters on disk, in the format of `peft`, so that every other tool can load them.

The configuration is written here instead of through `peft.LoraConfig`, because importing `peft`
costs three seconds at the start of each process; a test loads the result with `peft` itself.
"""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from app.domain.errors import InvalidInput
from app.domain.job_spec import LoraSpec
from worker.trunk.depth import block_of
from worker.trunk.lora import LoraAdapter, LoraPair
from worker.trunk.tensor_file import read_tensors

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

_PREFIX = "base_model.model."
_A_SUFFIX, _B_SUFFIX = ".lora_A.weight", ".lora_B.weight"

# Settings that change what an adapter computes, with the values under which it is plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
}


def save_adapter(directory: Path, adapter: LoraAdapter, base_model_name: str) -> None:
    """Write the weights and the configuration of an adapter into an existing directory."""
    tensors: dict[str, torch.Tensor] = {}
    for path, pair in adapter.weights.items():
        tensors[_PREFIX + path + _A_SUFFIX] = pair.a.detach().contiguous().cpu()
        tensors[_PREFIX + path + _B_SUFFIX] = pair.b.detach().contiguous().cpu()
    save_file(tensors, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.spec.alpha,
        "lora_dropout": adapter.spec.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.spec.r,
        "target_modules": sorted(adapter.spec.target_modules),
        "task_type": "CAUSAL_LM",
        "layers_to_transform": _layers_to_transform(adapter),
        "use_dora": False,
        "use_rslora": adapter.spec.use_rslora,
    }
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    (directory / CONFIG_NAME).write_bytes(text + b"\n")


def _layers_to_transform(adapter: LoraAdapter) -> list[int] | None:
    """Return the blocks that have an update; None where all of them do."""
    blocks = {block for path in adapter.weights if (block := block_of(path)) is not None}
    return sorted(blocks) if blocks and min(blocks) > 0 else None


def load_adapter(directory: Path) -> LoraAdapter:
    """Read an adapter into float32 tensors on the CPU.

    Raises:
        InvalidInput: there is no readable adapter, or one that is not plain LoRA.
    """
    spec = _read_spec(directory)
    try:
        tensors = read_tensors(directory / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"the adapter has no readable {WEIGHTS_NAME}") from error
    weights: dict[str, LoraPair] = {}
    for key in sorted(tensors):
        if key.endswith(_B_SUFFIX):
            continue
        partner = key.removesuffix(_A_SUFFIX) + _B_SUFFIX
        if not (key.startswith(_PREFIX) and key.endswith(_A_SUFFIX)) or partner not in tensors:
            raise InvalidInput(f"the adapter holds a tensor that is not plain LoRA: {key}")
        path = key.removeprefix(_PREFIX).removesuffix(_A_SUFFIX)
        weights[path] = _checked_pair(path, tensors[key].float(), tensors[partner].float(), spec.r)
    if not weights or 2 * len(weights) != len(tensors):
        raise InvalidInput("the adapter's weights are incomplete")
    return LoraAdapter(spec, weights)


def _read_spec(directory: Path) -> LoraSpec:
    try:
        config = msgspec.json.decode((directory / CONFIG_NAME).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the adapter has no readable {CONFIG_NAME}") from error
    for name, plain_values in _PLAIN.items():
        if name in config and config[name] not in plain_values:
            raise InvalidInput(f"only plain LoRA adapters are supported; {name!r} is set")
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        raise InvalidInput("the adapter's target_modules must be a list of names")
    try:
        return LoraSpec(
            r=msgspec.convert(config.get("r"), int),
            alpha=msgspec.convert(config.get("lora_alpha"), int),
            dropout=msgspec.convert(config.get("lora_dropout", 0.0), float),
            use_rslora=msgspec.convert(config.get("use_rslora") or False, bool),
            target_modules=tuple(sorted(msgspec.convert(targets, list[str]))),
        )
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the adapter's {CONFIG_NAME} is not valid: {error}") from error


def _checked_pair(path: str, a: torch.Tensor, b: torch.Tensor, rank: int) -> LoraPair:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise InvalidInput(f"the adapter's weights of {path} do not have rank {rank}")
    # Adapters of several tenants share a product: a NaN of one must never enter it.
    if not math.isfinite(float(a.sum()) + float(b.sum())):
        raise InvalidInput(f"the adapter's weights of {path} are not finite")
    return LoraPair(a, b)
