"""Training methods that fail in the ways a run must survive."""

import torch
import torch.distributed as dist

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


class FaultyInOne(Supervised):
    """Has a defect in one of several processes: the one that `rank` names."""

    rank: int

    def loss(self, rows: LabelRows, survey: float) -> MethodLoss:
        if dist.get_rank() == self.rank:
            raise ZeroDivisionError(f"a defect of {self.rank}")
        return super().loss(rows, survey)


class FaultyInFirst(FaultyInOne):
    rank = 0


class FaultyInSecond(FaultyInOne):
    rank = 1
