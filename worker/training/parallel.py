"""How the records of a step are divided among the processes that take it together.

What a batch comes to is the same whoever computes which part of it: sums and gradients of the parts
are added up before anything is divided by what the whole batch has.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from torch import nn

from worker.training.batches import derived_seed

_Item = TypeVar("_Item")
Weights = Sequence[tuple[str, nn.Parameter]]


class Group(Protocol):
    """The processes that share the steps of a run.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return this process's part of a batch; may be empty."""

    def own_seed(self, *parts: int | str) -> int:
        """Return a seed that depends on all parts, and that no other rank has."""

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all ranks; a rank without a share has no names to bring."""

    def sum_gradients(self, weights: Weights) -> None:
        """Make every rank's gradients the sums of all ranks'."""


class Solo:
    """See `Group`: one process, which has nobody to ask."""

    rank = 0
    size = 1

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        return items

    def own_seed(self, *parts: int | str) -> int:
        return derived_seed(*parts)

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return dict(metrics)

    def sum_gradients(self, weights: Weights) -> None:
        return


SOLO = Solo()
