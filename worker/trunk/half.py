"""Linear layers whose weights are kept in 16 bits that lose nothing, and computed in float32.

Most models are published in 16 bits. In float32 their weights are the same numbers in twice the
bytes, and a few rows take as long as the weights take to come from memory. float16 with a power of
two beside it holds what bfloat16 or float16 held, but for what vanishes beside the largest weight
of an output in float32 as well. Products and sums stay float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.trunk.products import joined_bias, side_by_side

# From this number of rows on, arithmetic takes longer than memory, and float32 weights as long.
# With fewer, what is computed of a row does not depend on the others, to the last bit. Measured on
# AVX-512; bench/serving shows the effect.
_MANY_ROWS = 48
# Of the largest weight that an output depends on: what float32 itself loses beside it.
_LOSS = 2.0**-24
_LARGEST_EXPONENT = 15
# Larger ones are not float32 numbers any more.
_LARGEST_SCALE = 2.0**100
# As fbgemm lays weights out: in blocks of so many inputs, of which the last is filled up.
_BLOCK = 512
# Rows that are compared at once, so that the comparison takes little memory.
_COMPARED_ROWS = 1024


class DoesNotFitError(Exception):
    """16 bits do not hold these weights."""


def is_available() -> bool:
    """Say whether this build of torch computes the products on this processor."""
    try:
        torch.ops.quantized.linear_prepack_fp16(torch.zeros(1, 1), None)
    except (RuntimeError, AttributeError):
        return False
    return True


def held_bytes(weights: Sequence[Tensor]) -> int:
    """Return the memory that products with such matrices [out, in] take."""
    return sum(
        2 * weight.shape[0] * math.ceil(weight.shape[1] / _BLOCK) * _BLOCK for weight in weights
    )


class HalfProduct:
    """The products of rows with several matrices at once.

    Args:
        weights: [out, in] float32 each, of one width `in`; they are copied, and read where they are
            once there are many rows.
        biases: [out] each, or None.

    Raises:
        DoesNotFitError: 16 bits do not hold the weights.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self._weights, self._biases = list(weights), list(biases)
        parts = [weight.detach() for weight in weights]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        # As they are, if that loses nothing; else with the smallest in the range of float16.
        self._scale = 1.0
        if not _fits(whole, loss=0.0):
            self._scale = _scale(whole)
            whole = whole * self._scale
            if not _fits(whole, loss=_LOSS):
                raise DoesNotFitError
        self._packed = torch.ops.quantized.linear_prepack_fp16(whole, None)
        self._bias = joined_bias(weights, biases)
        # Looked up once: there are hundreds of products in a step.
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, rows: Tensor) -> Tensor:
        """Return [rows, sum of out] float32; `rows` is [rows, in] float32."""
        if rows.shape[0] >= _MANY_ROWS:
            return side_by_side(rows, self._weights, self._biases)
        whole: Tensor = self._multiply(rows, self._packed)
        if self._scale != 1.0:
            whole.div_(self._scale)
        if self._bias is not None:
            whole.add_(self._bias)
        return whole


def _fits(weights: Tensor, loss: float) -> bool:
    """Say whether float16 holds weights [out, in].

    Args:
        loss: how much of an output's largest weight may be lost of each.
    """

    def hold(part: Tensor) -> bool:
        losses = (part.half().float() - part).abs_().amax(dim=1)
        # What is no number does not fit either.
        return bool((losses <= part.abs().amax(dim=1) * loss).all())

    return all(map(hold, torch.split(weights, _COMPARED_ROWS)))


def _scale(weights: Tensor) -> float:
    """Return the power of two that brings weights into the range of float16."""
    largest = float(weights.abs().max())
    if not math.isfinite(largest):
        raise DoesNotFitError
    return min(2.0 ** (_LARGEST_EXPONENT - math.frexp(largest)[1]), _LARGEST_SCALE)
