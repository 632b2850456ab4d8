"""The product of a few rows and a large matrix, by the fastest of the ways that torch has."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

# What rows [rows, in] become by several matrices, side by side: a new tensor [rows, sum of out].
Products = Callable[[Tensor], Tensor]
# Makes it of the matrices, [out, in] each, and of their biases, [out] or None.
MakeProducts = Callable[[Sequence[Tensor], Sequence[Tensor | None]], Products]

# Between these numbers of rows MKL's product, which `linear` takes for float32, costs up to twice
# what oneDNN's costs, if the matrix is large. Fewer rows wait for memory either way, and of many
# MKL makes as much. Measured on AVX-512 at 2 to 320 rows; bench/serving shows the effect.
_FEWEST_ROWS, _MOST_ROWS = 4, 64
_LARGE = 1 << 19


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `rows @ weight.T + bias`, [rows, out], without gradients.

    Args:
        rows: [rows, in].
        weight: [out, in].
        bias: [out].
    """
    if (
        _FEWEST_ROWS <= rows.shape[0] <= _MOST_ROWS
        and weight.numel() >= _LARGE
        and rows.dtype is torch.float32
        and rows.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        pointwise = torch.ops.mkldnn._linear_pointwise
        found: Tensor = pointwise(rows, weight, bias, "none", [], "")
        return found
    return linear(rows, weight, bias)


def side_by_side(
    rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Tensor:
    """Return the products with several matrices in one tensor, [rows, sum of out]."""
    if len(weights) == 1:
        return product(rows, weights[0], biases[0])
    return torch.cat([product(rows, *each) for each in zip(weights, biases, strict=True)], dim=1)


def joined_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """Return the biases of several matrices side by side, [sum of out]; None if there is none."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )
