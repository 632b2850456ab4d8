"""The numbers of a run: what each step and each validation measured."""

import csv
import io

import msgspec

MEAN_TOKEN_ACCURACY = "mean_token_accuracy"


class StepMetrics(msgspec.Struct, frozen=True):
    """One optimizer step.

    Attributes:
        step: counted from 1.
        train_loss: of the batch.
        metrics: what else the method measured, as means over the batch.
    """

    step: int
    train_loss: float
    metrics: dict[str, float] = {}

    def as_fields(self) -> dict[str, float]:
        """Return the numbers under the names that they are told by."""
        named = {f"train_{name}": value for name, value in self.metrics.items()}
        return {"step": self.step, "train_loss": self.train_loss, **named}


class ValidationMetrics(msgspec.Struct, frozen=True):
    """The whole held-out data after a step; step 0 is before training."""

    step: int
    valid_loss: float
    metrics: dict[str, float] = {}

    def as_fields(self) -> dict[str, float]:
        """Return the numbers under the names that they are told by."""
        named = {f"valid_{name}": value for name, value in self.metrics.items()}
        return {"step": self.step, "valid_loss": self.valid_loss, **named}


class MetricsLog(msgspec.Struct):
    """Everything measured so far; part of a checkpoint."""

    steps: list[StepMetrics] = []
    validations: list[ValidationMetrics] = []

    def has_validation(self, step: int) -> bool:
        return any(entry.step == step for entry in self.validations)

    def history(self, metric: str) -> list[tuple[int, float | None]]:
        """Return a metric's value after each validation; None where it was not measured."""
        return [
            (entry.step, entry.valid_loss if metric == "loss" else entry.metrics.get(metric))
            for entry in self.validations
        ]

    def at_checkpoint(self, step: int) -> dict[str, float]:
        """Return what was measured at a step, in the words of OpenAI's checkpoint object."""
        measured: dict[str, float] = {"step": step}
        if self.steps and self.steps[-1].step == step:
            measured |= self.steps[-1].as_fields()
        if self.validations and self.validations[-1].step == step:
            full = self.validations[-1].as_fields()
            measured |= full | {f"full_{key}": full[key] for key in full if key != "step"}
        return measured

    def to_csv(self) -> str:
        """Return one line a step; validation columns are empty where none was due.

        The first columns are OpenAI's; what else was measured follows.
        """
        validations = {entry.step: entry.as_fields() for entry in self.validations}
        rows = [entry.as_fields() | validations.get(entry.step, {}) for entry in self.steps]
        names = {name: None for row in rows for name in row}
        columns = [*_CSV_COLUMNS, *(name for name in names if name not in _CSV_COLUMNS.values())]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([row.get(_CSV_COLUMNS.get(name, name), "") for name in columns])
        return text.getvalue()


# OpenAI's columns, and the numbers that stand in them.
_CSV_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": f"train_{MEAN_TOKEN_ACCURACY}",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": f"valid_{MEAN_TOKEN_ACCURACY}",
}
