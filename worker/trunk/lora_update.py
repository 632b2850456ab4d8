"""What one adapter changes in one layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """`scaling * b @ a`: `a` [r, in] and `b` [out, r], float32."""

    a: Tensor
    b: Tensor
    scaling: float
