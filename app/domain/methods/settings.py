"""What all training methods take, and how `auto` becomes a number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.domain.job_spec import AdapterSpec

# As an `enum` of one: generators of clients stumble over a `const` beside a number.
Auto = Annotated[Literal["auto"], WithJsonSchema({"type": "string", "enum": ["auto"]})]

# What a hyperparameter is where it is `auto`, and why.
Automatic = tuple[int | float, str]


class MethodPart(BaseModel):
    """Base of what a method takes: an unknown field is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hyperparameters(MethodPart):
    """The hyperparameters that every method has; `auto` is resolved from the data."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = (
        "auto"
    )
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"

    def automatic(self, record_count: int) -> dict[str, Automatic]:
        """Return what each field that can be `auto` is then.

        The rules aim at enough optimizer steps for a small set to be learnt (about 300 records
        seen) and few enough passes that a large one is not memorised.
        """
        return {
            "n_epochs": _auto_epochs(record_count),
            "batch_size": _auto_batch_size(record_count),
            "learning_rate_multiplier": (
                1.0,
                "1 keeps the base model's own rate from the catalogue",
            ),
        }


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a job brings together with the settings of its method.

    Attributes:
        record_kinds: of each of its files, by the field that names the file.
        base_model: id in the operator's catalogue.
        adapter: what is trained of the model.
        training: fields of `tunesmith.training`.
        max_length_tokens: of a record.
    """

    record_kinds: Mapping[str, str]
    base_model: str
    adapter: AdapterSpec
    max_length_tokens: int
    training: Mapping[str, Any] = field(default_factory=dict)


class MethodSettings(MethodPart):
    """Base of a method's settings, which have the field `hyperparameters`."""

    def check(self, circumstances: Circumstances, where: str) -> None:
        """Refuse what types cannot say.

        Args:
            where: the path of the settings in the request, for messages.

        Raises:
            InvalidInput: naming the field and the reason.
        """


@dataclass(frozen=True, slots=True)
class Resolution:
    """The concrete value of one hyperparameter, and why it was chosen if it was `auto`."""

    name: str
    value: int | float
    reason: str | None


def resolve_hyperparameters(
    requested: Hyperparameters, record_count: int
) -> tuple[Resolution, ...]:
    """Replace every `auto` by a number chosen from the size of the dataset."""
    return tuple(
        _resolve(name, getattr(requested, name), *automatic)
        for name, automatic in requested.automatic(record_count).items()
    )


def _auto_epochs(record_count: int) -> tuple[int, str]:
    if record_count < 100:
        epochs = min(10, ceil(300 / record_count))
        return (
            epochs,
            f"{record_count} records are few: about 300 are to be seen, in 3 to 10 passes",
        )
    if record_count < 1_000:
        return 3, f"{record_count} records: below 1,000, three passes"
    if record_count < 10_000:
        return 2, f"{record_count} records: below 10,000, two passes"
    return 1, f"{record_count} records: one pass over a large set"


def _auto_batch_size(record_count: int) -> tuple[int, str]:
    size = 4
    while size < 64 and size * 100 <= record_count:
        size *= 2
    size = min(size, record_count)
    return (
        size,
        f"{record_count} records: a batch of 4 to 64, about one hundredth of the set",
    )


def _resolve(
    name: str, requested: int | float | Auto, automatic: int | float, reason: str
) -> Resolution:
    if requested == "auto":
        return Resolution(name, automatic, reason)
    return Resolution(name, requested, None)
