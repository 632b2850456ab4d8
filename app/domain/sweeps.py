"""Sweeps: what is searched, how, and the states of a sweep and of its trials.

The search itself is in `app.domain.search`, which is imported by name when it is needed.
"""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

MAX_TRIALS = 500
MAX_PARALLEL = 64
MAX_PARAMETERS = 16
MAX_CHOICES = 64
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


class _Space(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FloatSpace(_Space):
    """Numbers from `low` to `high`, both included."""

    type: Literal["float"]
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: Annotated[bool, Field(description="Search the exponent evenly, for rates.")] = False
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> "FloatSpace":
        _check_range(self.low, self.high)
        if self.log and self.low <= 0:
            raise ValueError("a `low` above 0, since `log` is set")
        if self.log and self.step is not None:
            raise ValueError("`log` or `step`, not both")
        return self

    @property
    def size(self) -> int | None:
        """Number of candidates; None: they cannot be counted."""
        if self.low == self.high:
            return 1
        if self.step is None:
            return None
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step))) + 1

    def candidates(self) -> list[Any]:
        """Return every candidate, where they can be counted."""
        return [
            self.snapped(self.low + index * (self.step or 0)) for index in range(self.size or 0)
        ]

    def extremes(self) -> list[Any]:
        """Return the candidates between which all others lie."""
        size = self.size
        if size is None or self.step is None:
            return [self.low, self.high]
        return [self.low, self.snapped(self.low + (size - 1) * self.step)]

    def snapped(self, value: float) -> float:
        """Return the candidate closest to a value: 0.3, and not 0.30000000000000004."""
        if self.step is None:
            return value
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        return float(low + round((Decimal(str(value)) - low) / step) * step)


class IntSpace(_Space):
    """Whole numbers from `low` to `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _is_a_range(self) -> "IntSpace":
        _check_range(self.low, self.high)
        if self.log and self.low <= 0:
            raise ValueError("a `low` above 0, since `log` is set")
        if self.log and self.step != 1:
            raise ValueError("`log` or `step`, not both")
        return self

    @property
    def size(self) -> int:
        """Number of candidates."""
        return (self.high - self.low) // self.step + 1

    def candidates(self) -> list[Any]:
        """Return every candidate."""
        return list(range(self.low, self.high + 1, self.step))

    def extremes(self) -> list[Any]:
        """Return the candidates between which all others lie."""
        return [self.low, self.low + (self.size - 1) * self.step]


class CategoricalSpace(_Space):
    """Any of some values, which have no order; lists and objects too."""

    type: Literal["categorical"]
    choices: Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_CHOICES)]

    @model_validator(mode="after")
    def _are_distinct(self) -> "CategoricalSpace":
        for index, choice in enumerate(self.choices):
            if self.index(choice) != index:
                raise ValueError(f"choices of which no two are equal; {choice!r} is there twice")
        return self

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self.choices)

    def candidates(self) -> list[Any]:
        """Return every candidate."""
        return list(self.choices)

    def extremes(self) -> list[Any]:
        """Return every candidate: none of them lies between others."""
        return list(self.choices)

    def index(self, value: Any) -> int:
        """Return the place of a choice. Raises: ValueError if it is none."""
        for index, choice in enumerate(self.choices):
            # To Python, True is 1; to a job it is not.
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return index
        raise ValueError(f"{value!r} is none of the choices")


Space = Annotated[FloatSpace | IntSpace | CategoricalSpace, Field(discriminator="type")]
Spaces = dict[str, FloatSpace | IntSpace | CategoricalSpace]

_SPACES: TypeAdapter[Spaces] = TypeAdapter(dict[str, Space])


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
    """

    number: int
    state: TrialState
    parameters: dict[str, Any]
    value: float | None = None
    history: tuple[float | None, ...] = ()
    judged: int = 0


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


def spaces_of(wire: dict[str, Any]) -> Spaces:
    """Return the spaces of a wire object."""
    return _SPACES.validate_python(wire)


def count_combinations(spaces: Spaces) -> int | None:
    """Return how many combinations there are; None: they cannot be counted."""
    sizes = [space.size for space in spaces.values()]
    known = [size for size in sizes if size is not None]
    return prod(known) if len(known) == len(sizes) else None


def default_pruner(algorithm: Algorithm) -> Pruner:
    """Return what prunes unless another is named: a grid is there to be seen whole."""
    if algorithm == "grid":
        return "none"
    return "successive_halving" if algorithm == "successive_halving" else "median"


def _check_range(low: float, high: float) -> None:
    if low > high:
        raise ValueError("a `low` that is not above `high`")
