"""Spaces: which values a sweep may try for one field of a job's request."""

from decimal import Decimal
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

MAX_CHOICES = 32


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


def spaces_of(wire: dict[str, Any]) -> Spaces:
    """Return the spaces of a wire object."""
    return _SPACES.validate_python(wire)


def count_combinations(spaces: Spaces) -> int | None:
    """Return how many combinations there are; None: they cannot be counted."""
    sizes = [space.size for space in spaces.values()]
    known = [size for size in sizes if size is not None]
    return prod(known) if len(known) == len(sizes) else None


def _check_range(low: float, high: float) -> None:
    if low > high:
        raise ValueError("a `low` that is not above `high`")
