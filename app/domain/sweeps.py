"""Sweeps: how hyperparameters are searched, and the states of a sweep and of its trials.

The search itself is in `app.domain.search`, which is imported by name when it is needed.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from app.domain.search_spaces import Spaces, count_combinations

MAX_TRIALS = 500


MAX_PARALLEL = 64


MAX_PARAMETERS = 16


# A grid is written out in memory at each look.
MAX_GRID = 10_000


Algorithm = Literal["grid", "random", "tpe", "successive_halving"]


Pruner = Literal["none", "median", "successive_halving"]


class SweepStatus(StrEnum):
    """States of a sweep; all but the first are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrialState(StrEnum):
    """States of a trial; all but the first are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a sweep may take: past it, no trial is started. None stands for no limit.

    Attributes:
        max_trained_tokens: of all its jobs together.
        max_seconds: since the sweep was created.
    """

    max_trained_tokens: int | None = None
    max_seconds: int | None = None

    def is_spent(self, trained_tokens: int, seconds: float) -> bool:
        """Say whether nothing is left."""
        tokens_are_spent = (
            self.max_trained_tokens is not None and trained_tokens >= self.max_trained_tokens
        )
        return tokens_are_spent or (self.max_seconds is not None and seconds >= self.max_seconds)


@dataclass(frozen=True, slots=True)
class Search:
    """What a sweep looks for, and how.

    Attributes:
        spaces: by dotted path of the request's field.
        metric: name in `app.domain.metrics.METRICS`.
        seed: decides, with the trials so far, what is tried next.
    """

    spaces: Spaces
    metric: str
    algorithm: Algorithm
    pruner: Pruner
    max_trials: int
    max_parallel: int
    seed: int
    budget: Budget = Budget()

    @property
    def max_distinct_trials(self) -> int:
        """How many trials there can be, none of which repeats another by necessity."""
        size = count_combinations(self.spaces)
        return self.max_trials if size is None else min(self.max_trials, size)


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of values, and what is known of it.

    Attributes:
        number: counted from 0, without gaps.
        value: of the metric, of the model that a job which succeeded has published.
        history: the metric at the end of each epoch; None where it was not measured.
        judged: so many epochs were judged by the pruner.
        num_epochs: that its job has in all; None while that is not known.
    """

    number: int
    state: TrialState
    parameters: dict[str, Any]
    value: float | None = None
    history: tuple[float | None, ...] = ()
    judged: int = 0
    num_epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Pruning:
    """A trial to give up, and the reason for people."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about a sweep now.

    Attributes:
        prune: running trials to give up.
        judged: of running trials, how many epochs have been judged now.
        start: parameters of the trials to start; they are numbered on from those there are.
        is_over: nothing runs and nothing is to be started.
    """

    prune: tuple[Pruning, ...] = ()
    judged: tuple[tuple[int, int], ...] = ()
    start: tuple[dict[str, Any], ...] = ()
    is_over: bool = False


def default_pruner(algorithm: Algorithm) -> Pruner:
    """Return what prunes unless another is named: a grid is there to be seen whole."""
    if algorithm == "grid":
        return "none"
    return "successive_halving" if algorithm == "successive_halving" else "median"
