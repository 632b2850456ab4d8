"""What a run has to show at its end: report, tables and pictures of the held-out data.

Imported by name when a run ends: drawing takes a library that takes a second to import.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from worker.evaluation.comparison import Comparison, compare, refusal
from worker.evaluation.markdown import to_markdown
from worker.evaluation.pictures.confusion_matrix import draw_confusion_matrix
from worker.evaluation.pictures.loss_curves import draw_loss_curves
from worker.evaluation.report import HeldOut, Report
from worker.training.commands import Train
from worker.training.learner import Learner
from worker.training.metrics import MetricsLog
from worker.training.outcome import Outcome


def report_on(
    command: Train, learner: Learner, best_step: int, is_interrupted: Callable[[], bool]
) -> Outcome | None:
    """Compare the trained model with its base on the held-out data; None when interrupted.

    Args:
        learner: with the weights that are to be published.
        best_step: the step that they are of.
    """
    spec = command.spec
    tuned = learner.measure("tuned", "heldout", is_interrupted)
    base = tuned and learner.measure("base", "heldout", is_interrupted)
    if tuned is None or base is None:
        return None
    forgetting = None
    if learner.has_earlier:
        after = learner.measure("tuned", "earlier", is_interrupted)
        before = after and learner.measure("start", "earlier", is_interrupted)
        if after is None or before is None:
            return None
        forgetting = compare(before.scored, after.scored, spec.seed)
    comparison = compare(base.scored, tuned.scored, spec.seed)
    condition = spec.evaluation.deploy_if
    why_not = None
    if condition is not None:
        why_not = refusal(comparison, condition.metric, condition.min_gain)
    report = Report(
        job_id=spec.job_id,
        base_model=spec.base_model,
        tuned_model=None if why_not else command.output_model,
        task=spec.task,
        method=spec.method,
        training_rows=learner.description()["records"],
        held_out=_held_out(command, tuned.scored.rows),
        bootstrap_seed=spec.seed,
        best_step=best_step,
        best_metric=spec.evaluation.best_metric,
        refusal=why_not,
        comparison=comparison,
        forgetting=forgetting,
        worst_rows=tuned.worst,
    )
    return Outcome(
        _files(report, learner.log, best_step), _summary(comparison, forgetting), why_not
    )


def _held_out(command: Train, rows: int) -> HeldOut:
    spec = command.spec
    if spec.validation_file is not None:
        return HeldOut("validation_file", spec.validation_file.file_id, rows)
    share = spec.evaluation.holdout
    return HeldOut("training_file", spec.training_file.file_id, rows, share, spec.seed)


def _files(report: Report, log: MetricsLog, best_step: int) -> dict[str, bytes]:
    curves = draw_loss_curves(
        [(entry.step, entry.train_loss) for entry in log.steps],
        [(entry.step, entry.valid_loss) for entry in log.validations],
        best_step=best_step,
    )
    files = {
        "report.json": report.to_json(),
        "report.md": to_markdown(report).encode(),
        "loss.png": curves.png,
        "loss.svg": curves.svg,
    }
    confusion = report.comparison.tuned.confusion
    if confusion is not None:
        matrix = draw_confusion_matrix(confusion)
        files |= {"confusion_matrix.png": matrix.png, "confusion_matrix.svg": matrix.svg}
    return files


def _summary(comparison: Comparison, forgetting: Comparison | None) -> dict[str, Any]:
    """Return what a job object tells of its report."""
    told = {"held_out_rows": comparison.tuned.rows, "metrics": _differences(comparison)}
    if forgetting is not None:
        told["forgetting"] = {
            "rows": forgetting.tuned.rows,
            "metrics": _differences(forgetting),
        }
    return told


def _differences(comparison: Comparison) -> dict[str, Any]:
    return {one.name: msgspec.to_builtins(one) for one in comparison.differences}
