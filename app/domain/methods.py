"""Training methods: the registry from which request schemas, validation and trainers derive."""

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.domain.registry import Registry

# As an `enum` of one: generators of clients stumble over a `const` beside a number.
Auto = Annotated[Literal["auto"], WithJsonSchema({"type": "string", "enum": ["auto"]})]


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


class SupervisedHyperparameters(Hyperparameters):
    """Hyperparameters of supervised fine-tuning; `auto` is resolved from the data."""


class SupervisedMethodSettings(MethodPart):
    """Settings of the method `supervised`."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class ContinuedPretrainingHyperparameters(Hyperparameters):
    """Hyperparameters of continued pre-training; `auto` is resolved from the data."""


class ContinuedPretrainingMethodSettings(MethodPart):
    """Settings of the method `continued_pretraining`."""

    hyperparameters: ContinuedPretrainingHyperparameters = ContinuedPretrainingHyperparameters()


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """One way to train. What it learns from is in `app.domain.tasks.TASKS`, by task.

    Attributes:
        summary: one sentence for the OpenAPI document.
        settings: the wire model of its settings, with the field `hyperparameters`.
        implementation: dotted path of the class that computes it for text generation, importable
            in the worker only; other tasks have their own classes.
    """

    summary: str
    settings: type[MethodPart]
    implementation: str

    @property
    def hyperparameters(self) -> type[Hyperparameters]:
        """The wire model of its hyperparameters."""
        model = self.settings.model_fields["hyperparameters"].annotation
        assert isinstance(model, type)
        assert issubclass(model, Hyperparameters)
        return model


METHODS: Registry[TrainingMethod] = Registry("training method")
METHODS.add(
    "supervised",
    TrainingMethod(
        summary="Learn the answers that the records give.",
        settings=SupervisedMethodSettings,
        implementation="worker.training.methods.supervised:Supervised",
    ),
)
METHODS.add(
    "continued_pretraining",
    TrainingMethod(
        summary="Learn raw text, without labels.",
        settings=ContinuedPretrainingMethodSettings,
        implementation="worker.training.methods.continued_pretraining:ContinuedPretraining",
    ),
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The concrete value of one hyperparameter, and why it was chosen if it was `auto`."""

    name: str
    value: int | float
    reason: str | None


def resolve_hyperparameters(
    requested: Hyperparameters, record_count: int
) -> tuple[Resolution, ...]:
    """Replace every `auto` by a number chosen from the size of the dataset.

    The rules aim at enough optimizer steps for a small set to be learnt (about 300 records seen)
    and few enough passes that a large one is not memorised.
    """
    return (
        _resolve("n_epochs", requested.n_epochs, *_auto_epochs(record_count)),
        _resolve("batch_size", requested.batch_size, *_auto_batch_size(record_count)),
        _resolve(
            "learning_rate_multiplier",
            requested.learning_rate_multiplier,
            1.0,
            "1 keeps the base model's own rate from the catalogue",
        ),
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
