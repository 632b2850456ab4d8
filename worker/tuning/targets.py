"""Which layers of a model an adapter changes."""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any

from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEEDFORWARD,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from torch import nn

from app.domain.errors import InvalidInput
from worker.trunk.depth import all_are_frozen, is_above

# How layers that make keys and values, and those that end a feed-forward block, are called in
# models that `peft` has no table for.
_KEYS_AND_VALUES = ("key", "value", "k_proj", "v_proj", "k", "v", "k_lin", "v_lin")
_FEEDFORWARD = ("output.dense", "down_proj", "fc2", "wo", "lin2", "dense_4h_to_h")

_USUAL_BLOCK = 32

TARGETS_FIELD = "tunesmith.adapter.target_modules"


def target_layers(
    model: nn.Module,
    head_modules: Sequence[str],
    asked: Sequence[str] | None,
    frozen_layers: int = 0,
) -> dict[str, nn.Module]:
    """Return the layers to adapt by their full names: never those of the head
    or the output layer.

    Without a wish, all linear layers; of a model that has none, its 1x1 convolutions.

    Args:
        frozen_layers: how many of the lowest blocks stay as they are.

    Raises:
        InvalidInput: the model has no layer of an asked name, or none that can be adapted.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    own = {path: one for path, one in _layers(model, head_modules) if one is not output}
    above = {path: layer for path, layer in own.items() if is_above(path, frozen_layers)}
    if asked is not None:
        known = {_last_name(path) for path in own}
        if missing := sorted(set(asked) - known):
            raise InvalidInput(
                f"the base model has no layer named {', '.join(missing)} that can be adapted",
                param=TARGETS_FIELD,
            )
        return {path: layer for path, layer in above.items() if _last_name(path) in asked}
    linear: dict[str, nn.Module] = {
        path: layer for path, layer in above.items() if isinstance(layer, nn.Linear)
    }
    found = linear or above
    if not found and own:
        raise all_are_frozen(frozen_layers)
    if not found:
        raise InvalidInput("the base model has no layer that an adapter could change")
    return found


def factor_layers(
    model: nn.Module,
    head_modules: Sequence[str],
    asked: Sequence[str] | None,
    frozen_layers: int = 0,
) -> tuple[list[str], list[str]]:
    """Return the layers that IA3 puts factors on, and those of them that end feed-forward blocks.

    The latter have the factors on their input. Without a wish, they are the layers that `peft`
    lists for the type of model, or those with the names that other models give to layers of
    keys, values and the end of feed-forward blocks; of a model with no such names, all layers.

    Raises:
        InvalidInput: see `target_layers`.
    """
    layers = target_layers(model, head_modules, asked, frozen_layers)
    kind = str(getattr(model.config, "model_type", ""))
    feedforward = _ending(layers, IA3_FEEDFORWARD.get(kind, _FEEDFORWARD))
    if asked is not None:
        return list(layers), feedforward
    suffixes: Sequence[str] = IA3_TARGETS.get(kind, (*_KEYS_AND_VALUES, *_FEEDFORWARD))
    return _ending(layers, suffixes) or list(layers), feedforward


def rotation_block(layers: Sequence[nn.Module], asked: int | None) -> int:
    """Return the size of OFT's blocks, which divides the width of every layer.

    Args:
        asked: the size; None: the largest up to 32 that fits.

    Raises:
        InvalidInput: it does not fit, or none does.
    """
    width = 0
    for layer in layers:
        width = gcd(width, _input_width(layer))
    sizes = range(min(_USUAL_BLOCK, width), 1, -1) if asked is None else [asked]
    fitting = next((size for size in sizes if width % size == 0), None)
    if fitting is None:
        raise InvalidInput(
            f"blocks of {asked or 'any size'} do not divide the widths of the base model's layers, "
            f"whose largest common divisor is {width}",
            param="tunesmith.adapter.block_size",
        )
    return fitting


def _layers(model: nn.Module, head_modules: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        is_head = any(path == head or path.startswith(head + ".") for head in head_modules)
        if not is_head and (isinstance(module, nn.Linear) or _is_pointwise(module)):
            yield path, module


def _is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and module.groups == 1


def _ending(layers: dict[str, nn.Module], suffixes: Sequence[str]) -> list[str]:
    return [path for path in layers if any(f".{path}".endswith(f".{one}") for one in suffixes)]


def _input_width(layer: Any) -> int:
    width: int = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return width


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]
