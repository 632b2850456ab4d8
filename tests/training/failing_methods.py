"""Training methods that fail in the ways a run must survive."""

import torch

from worker.training.methods import LabelRows, MethodLoss
from worker.training.methods.supervised import Supervised


class OutOfMemory(Supervised):
    """Runs out of memory as a CPU allocator tells it."""

    def loss(self, rows: LabelRows, survey: float) -> MethodLoss:
        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError("an exabyte was there")


class Diverging(Supervised):
    """Its loss overflows."""

    def loss(self, rows: LabelRows, survey: float) -> MethodLoss:
        found = super().loss(rows, survey)
        return MethodLoss(found.total * float("inf"), found.metrics)


class Faulty(Supervised):
    """Has a defect."""

    def loss(self, rows: LabelRows, survey: float) -> MethodLoss:
        raise ZeroDivisionError("a defect")
