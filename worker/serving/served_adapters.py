"""What an adapter directory is served as: in batches with others, or by weights of its own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from app.domain.errors import InvalidInput
from worker.trunk.lora import LoraAdapter
from worker.trunk.low_rank import InputWidth, adalora_as_lora, vera_as_lora
from worker.trunk.peft_format import CONFIG_NAME, WEIGHTS_NAME, load_adapter
from worker.trunk.prompt import PromptAdapter
from worker.trunk.tensor_file import read_tensors

MixedAdapter = LoraAdapter | PromptAdapter

_Config = Mapping[str, Any]
_PROMPT = "prompt_embeddings"


def read_mixed(directory: Path, input_width: InputWidth) -> MixedAdapter | None:
    """Return an adapter that shares batches with others; None if it needs weights of its own.

    Args:
        directory: as training wrote it, or `peft`.

    Raises:
        InvalidInput: the files cannot be read or do not fit together.
    """
    if not (directory / CONFIG_NAME).exists():
        return None
    config = _read_config(directory)
    kind = config.get("peft_type")
    if kind == "LORA" and not config.get("use_dora"):
        return load_adapter(directory)
    if kind not in _READERS:
        return None
    try:
        tensors = read_tensors(directory / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"the adapter has no readable {WEIGHTS_NAME}") from error
    # Adapters of several tenants share a product: a NaN of one must never enter it.
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise InvalidInput("the adapter's weights are not finite")
    try:
        return _READERS[kind](config, tensors, input_width)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InvalidInput(f"the adapter cannot be read: {error}") from error


def num_bytes(adapter: MixedAdapter) -> int:
    """Return how much memory an adapter's tensors take; what they share counts once."""
    if isinstance(adapter, LoraAdapter):
        tensors = [one for pair in adapter.weights.values() for one in (pair.a, pair.b)]
    else:
        tensors = [one for pair in adapter.past or () for one in pair]
        tensors += [adapter.embeddings] if adapter.embeddings is not None else []
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def _read_config(directory: Path) -> _Config:
    try:
        config: _Config = msgspec.json.decode(
            (directory / CONFIG_NAME).read_bytes(), type=dict[str, Any]
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the adapter has no readable {CONFIG_NAME}") from error
    return config


def _embeddings(_: _Config, tensors: Mapping[str, Tensor], __: InputWidth) -> PromptAdapter:
    return PromptAdapter(embeddings=tensors[_PROMPT])


def _prefix(config: _Config, tensors: Mapping[str, Tensor], _: InputWidth) -> PromptAdapter:
    layers, heads = config["num_layers"], config["num_attention_heads"]
    width = config["token_dim"] // heads
    # [virtual tokens, layers * 2 * token_dim], as `peft` cuts it: keys and values by turns.
    flat = tensors[_PROMPT]
    split = flat.view(1, flat.shape[0], 2 * layers, heads, width).permute(2, 0, 3, 1, 4)
    return PromptAdapter(past=[(split[2 * one], split[2 * one + 1]) for one in range(layers)])


_READERS: dict[str, Callable[[_Config, Mapping[str, Tensor], InputWidth], MixedAdapter]] = {
    "ADALORA": adalora_as_lora,
    "VERA": vera_as_lora,
    "PROMPT_TUNING": _embeddings,
    "P_TUNING": _embeddings,
    "PREFIX_TUNING": _prefix,
}
