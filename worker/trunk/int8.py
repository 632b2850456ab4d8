"""Linear layers with weights of 8 bits and activations of 8 bits, for CPUs.

Each output of a layer has a scale of its own, and so has each row that goes in: what is computed of
a row does not depend on the rows beside it, to the last bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.trunk.products import joined_bias

_LARGEST = 127
# Keeps a row of zeros from being divided by zero.
_TINY = 1e-12


def is_available() -> bool:
    """Say whether this build of torch has the products."""
    return torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.onednn, "qlinear_pointwise"
    )


class Int8Product:
    """The products of a row with several matrices at once.

    Args:
        weights: [out, in] each, of one width `in`; they are copied.
        biases: [out] each, or None.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        whole = torch.cat([weight.detach().float() for weight in weights])
        scales = whole.abs().amax(dim=1).clamp_(min=_TINY).div_(_LARGEST)
        rounded = (whole / scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = joined_bias(weights, biases)
        # Looked up once: there are hundreds of products in a step.
        self._multiply = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, rows: Tensor) -> Tensor:
        """Return [rows, sum of out] float32; `rows` is [rows, in] float32."""
        # Several times as fast as `vector_norm` with an infinite order.
        norms = rows.abs().amax(dim=-1, keepdim=True)
        norms = norms.clamp_(min=_TINY).div_(_LARGEST)
        rounded = (rows / norms).round_().to(torch.int8)
        whole: Tensor = self._multiply(
            rounded,
            1.0,
            0,
            self._packed,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        whole.mul_(norms)
        if self._bias is not None:
            whole.add_(self._bias)
        return whole
