"""The arithmetic of a linear layer with low-rank updates, forward and backward, as one operation.

As one operation it keeps only its input and `A x` for the backward pass, and adds every update
in place: autograd over the single products would keep and copy a full-width output for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from worker.trunk.lora_update import LoraUpdate
from worker.trunk.routing import AdapterRows


@dataclass(frozen=True, slots=True)
class LoraRows:
    """One adapter's part in a batch.

    Attributes:
        rows: its rows.
        update: its weights.
        keep: dropout's mask of its rows [rows, in] bool; None drops nothing.
        keep_share: probability of an element to be kept, by which the kept ones are divided.
    """

    rows: AdapterRows
    update: LoraUpdate
    keep: Tensor | None = None
    keep_share: float = 1.0

    @property
    def factor(self) -> float:
        return self.update.scaling / (self.keep_share if self.keep is not None else 1.0)


def lora_linear(
    stream: Tensor, weight: Tensor, bias: Tensor | None, groups: Sequence[LoraRows]
) -> Tensor:
    """Return `stream @ weight.T + bias`, with each group's update added to its rows.

    The products run in the format of `stream`; gradients reach `a` and `b` in float32.

    Args:
        stream: [tokens, in].
        weight: [out, in], frozen.
        bias: [out], frozen.
        groups: disjoint rows.

    Returns:
        [tokens, out].
    """
    pairs = [tensor for group in groups for tensor in (group.update.a, group.update.b)]
    output: Tensor = _LoraLinear.apply(stream, weight, bias, groups, *pairs)  # type: ignore[no-untyped-call]
    return output


def add_updates(output: Tensor, stream: Tensor, groups: Sequence[LoraRows]) -> list[Tensor]:
    """Add each group's update to its rows of `output`, in place.

    Returns:
        `A x` of each group's rows, [rows, r].
    """
    inners: list[Tensor] = []
    for group in groups:
        rows = group.rows.take(stream)
        inner = (rows if group.keep is None else rows * group.keep) @ group.update.a.to(
            stream.dtype
        ).t()
        inners.append(inner)
        _add_product(output, group, inner, group.update.b.to(stream.dtype).t(), None, group.factor)
    return inners


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: Sequence[LoraRows],
        *pairs: Tensor,
    ) -> Tensor:
        output = linear(stream, weight, bias)
        inner = add_updates(output, stream, groups)
        ctx.save_for_backward(stream, weight, *inner, *pairs)
        ctx.groups = groups
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        stream, weight, *saved = ctx.saved_tensors
        groups: Sequence[LoraRows] = ctx.groups
        inner, pairs = saved[: len(groups)], saved[len(groups) :]
        grad_stream = grad_output @ weight if ctx.needs_input_grad[0] else None
        grad_pairs: list[Tensor | None] = []
        for index, group in enumerate(groups):
            a, b = pairs[2 * index], pairs[2 * index + 1]
            rows = group.rows.take(stream)
            grad_rows = group.rows.take(grad_output)
            grad_inner = (grad_rows @ b.to(grad_rows.dtype)).mul_(group.factor)  # [rows, r]
            grad_b = (grad_rows.t() @ inner[index]).mul_(group.factor)
            grad_a = grad_inner.t() @ (rows if group.keep is None else rows * group.keep)
            grad_pairs += [grad_a.to(a.dtype), grad_b.to(b.dtype)]
            if grad_stream is not None:
                _add_product(grad_stream, group, grad_inner, a.to(grad_inner.dtype), group.keep)
        return grad_stream, None, None, None, *grad_pairs


def _add_product(
    target: Tensor,
    group: LoraRows,
    left: Tensor,
    right: Tensor,
    keep: Tensor | None,
    factor: float = 1.0,
) -> None:
    """Add `factor * left @ right`, masked by `keep`, to the group's rows of `target` in place."""
    if group.rows.index is None and keep is None:
        group.rows.take(target).addmm_(left, right, alpha=factor)
        return
    product = (left @ right).mul_(factor)
    if keep is not None:
        product.mul_(keep)
    if group.rows.index is None:
        group.rows.take(target).add_(product)
    else:
        target.index_add_(0, group.rows.index, product)
