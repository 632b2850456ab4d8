"""Adapters of other kinds than LoRA that are served as LoRA: their updates have a low rank, too.

They are read from the files that `peft` writes, without `peft`, which takes seconds to import.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from app.domain.errors import InvalidInput
from app.domain.job_spec import LoraSpec
from worker.trunk.lora import LoraAdapter, LoraPair

# How many inputs the linear layer at a path has.
InputWidth = Callable[[str], int]

_PREFIX = "base_model.model."
_NOT_WHOLE = "the adapter's weights are incomplete"


def adalora_as_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], _: InputWidth
) -> LoraAdapter:
    """Return `B diag(E) A`, scaled by alpha over the rank that every layer began with.

    Raises:
        InvalidInput: a matrix is missing or has another shape.
    """
    # As `peft` has it: the rank is kept when ranks are taken away.
    scaling = float(config["lora_alpha"]) / (float(config["init_r"]) + 1e-5)
    pairs: dict[str, LoraPair] = {}
    for path, a in _ending(tensors, ".lora_A"):
        b, e = (_partner(tensors, path, side) for side in (".lora_B", ".lora_E"))
        if a.ndim != 2 or b.ndim != 2 or e.shape != (a.shape[0], 1) or b.shape[1] != a.shape[0]:
            raise InvalidInput(f"the adapter's weights of {path} do not fit together")
        if a.shape[0] > 0:
            pairs[path] = LoraPair(a * e, b * scaling)
    return _unscaled(pairs)


def vera_as_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], input_width: InputWidth
) -> LoraAdapter:
    """Return each layer's part of the shared matrices with its own scales.

    Raises:
        InvalidInput: a matrix is missing or too small.
    """
    if "base_model.vera_A" not in tensors or "base_model.vera_B" not in tensors:
        raise InvalidInput("the adapter was saved without its projections")
    shared_a, shared_b = tensors["base_model.vera_A"], tensors["base_model.vera_B"]
    pairs: dict[str, LoraPair] = {}
    for path, scales in _ending(tensors, ".vera_lambda_d"):
        output_scales = _partner(tensors, path, ".vera_lambda_b")
        width, height = input_width(path), output_scales.shape[0]
        if width > shared_a.shape[1] or height > shared_b.shape[0]:
            raise InvalidInput(f"the adapter's weights of {path} do not fit together")
        a, b = shared_a[:, :width], shared_b[:height]
        pairs[path] = LoraPair(scales[:, None] * a, output_scales[:, None] * b)
    return _unscaled(pairs)


def _unscaled(pairs: dict[str, LoraPair]) -> LoraAdapter:
    if not pairs:
        raise InvalidInput(_NOT_WHOLE)
    names = tuple(sorted({path.rpartition(".")[2] for path in pairs}))
    return LoraAdapter(LoraSpec(r=1, alpha=1, target_modules=names), pairs)


def _ending(tensors: Mapping[str, Tensor], suffix: str) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in sorted(tensors.items()):
        if key.startswith(_PREFIX) and key.endswith(suffix):
            yield key.removeprefix(_PREFIX).removesuffix(suffix), tensor.float()


def _partner(tensors: Mapping[str, Tensor], path: str, suffix: str) -> Tensor:
    if (partner := tensors.get(_PREFIX + path + suffix)) is None:
        raise InvalidInput(_NOT_WHOLE)
    return partner.to(torch.float32)
