"""Training methods that fail in the ways a run must survive."""

import torch
from torch import Tensor

from worker.training.losses.cross_entropy import TokenLosses
from worker.training.methods.supervised import Supervised


class OutOfMemory(Supervised):
    """Runs out of memory as a CPU allocator tells it."""

    def loss(
        self, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor
    ) -> TokenLosses:
        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError("an exabyte was there")


class Diverging(Supervised):
    """Its loss overflows."""

    def loss(
        self, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor
    ) -> TokenLosses:
        return super().loss(hidden, head_weight, targets, weights * float("inf"))


class Faulty(Supervised):
    """Has a defect."""

    def loss(
        self, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor
    ) -> TokenLosses:
        raise ZeroDivisionError("a defect")
