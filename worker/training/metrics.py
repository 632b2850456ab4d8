"""The numbers of a run: what each step and each validation measured."""

import csv
import io

import msgspec


class StepMetrics(msgspec.Struct, frozen=True):
    """One optimizer step.

    Attributes:
        step: counted from 1.
        train_loss: mean negative log-likelihood of the batch's learnt tokens, in nats.
        train_mean_token_accuracy: share of them that were the most likely token.
    """

    step: int
    train_loss: float
    train_mean_token_accuracy: float


class ValidationMetrics(msgspec.Struct, frozen=True):
    """The whole validation file after a step; step 0 is before training."""

    step: int
    valid_loss: float
    valid_mean_token_accuracy: float


class MetricsLog(msgspec.Struct):
    """Everything measured so far; part of a checkpoint."""

    steps: list[StepMetrics] = []
    validations: list[ValidationMetrics] = []

    def has_validation(self, step: int) -> bool:
        return any(entry.step == step for entry in self.validations)

    def at_checkpoint(self, step: int) -> dict[str, float]:
        """Return what was measured at a step, in the words of OpenAI's checkpoint object."""
        measured: dict[str, float] = {"step": step}
        if self.steps and self.steps[-1].step == step:
            measured |= msgspec.structs.asdict(self.steps[-1])
        if self.validations and self.validations[-1].step == step:
            full = msgspec.structs.asdict(self.validations[-1])
            measured |= full | {f"full_{key}": full[key] for key in full if key != "step"}
        return measured

    def to_csv(self) -> str:
        """Return one line a step; validation columns are empty where none was due."""
        validations = {
            entry.step: [entry.valid_loss, entry.valid_mean_token_accuracy]
            for entry in self.validations
        }
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(
            ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
        )
        for entry in self.steps:
            trained = [entry.step, entry.train_loss, entry.train_mean_token_accuracy]
            rows.writerow(trained + validations.get(entry.step, ["", ""]))
        return text.getvalue()
