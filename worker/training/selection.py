"""By which metric a run is judged: when it ends early, and which of its epochs is the result."""

from collections.abc import Container
from dataclasses import dataclass

from app.domain.errors import TrainingFailed
from app.domain.job_spec import JobSpec
from app.domain.methods import METHODS
from app.domain.tasks import TASKS
from worker.training.best import best_step, epochs_since_best
from worker.training.metrics import MetricsLog, ValidationMetrics


@dataclass(frozen=True, slots=True)
class Selection:
    """What a spec says of choosing among epochs."""

    spec: JobSpec
    steps_per_epoch: int

    @property
    def metric(self) -> str:
        """The one that was asked for, or the main one of the method or the task."""
        spec = self.spec
        of_method = METHODS[spec.method].main_metric
        return spec.evaluation.best_metric or of_method or TASKS[spec.task].main_metric

    def check(self, measured: ValidationMetrics) -> None:
        """Find out before the first step that nothing could be chosen by a metric.

        Raises:
            TrainingFailed: a metric was asked for that the validation did not measure.
        """
        wanted = self.spec.evaluation.best_metric
        if wanted is not None and wanted != "loss" and wanted not in measured.metrics:
            raise TrainingFailed(
                f"best_metric {wanted!r} is not measured in this job; measured are "
                f"{', '.join(['loss', *measured.metrics])}",
                code="invalid_metric",
                param="tunesmith.evaluation.best_metric",
            )

    def has_stopped_improving(self, log: MetricsLog, step: int) -> bool:
        """Say whether the last epochs brought nothing, as `early_stopping` means it."""
        stopping = self.spec.hyperparameters.early_stopping
        if stopping is None or step == 0 or step % self.steps_per_epoch:
            return False
        history = [one for one in log.history(self.metric) if one[0] % self.steps_per_epoch == 0]
        return epochs_since_best(self.metric, history, stopping.min_delta) >= stopping.patience

    def best_of(self, log: MetricsLog, steps: Container[int]) -> int | None:
        """Return which of some steps is best; None: the last is to be taken."""
        spec = self.spec
        if not spec.evaluation.best_metric and spec.hyperparameters.early_stopping is None:
            return None
        return best_step(self.metric, [one for one in log.history(self.metric) if one[0] in steps])

    def notes(self, step: int, total_steps: int, chosen_step: int) -> list[str]:
        """Return what a user would wonder about: an early end, a step that is not the last."""
        stopping = self.spec.hyperparameters.early_stopping
        notes = []
        if stopping is not None and step < total_steps:
            notes.append(
                f"Stopped early after step {step}: {self.metric} has not improved for "
                f"{stopping.patience} epochs"
            )
        if chosen_step != step:
            notes.append(f"The model is that of step {chosen_step}, the best by {self.metric}")
        return notes
