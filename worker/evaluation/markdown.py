"""The report as a page for people."""

from collections.abc import Iterable, Sequence

from app.domain.metrics import METRICS
from worker.evaluation.comparison import Comparison, Difference
from worker.evaluation.measure import MIN_ROWS_FOR_INTERVAL, ClassScores, Evaluation, Measurement
from worker.evaluation.report import HeldOut, Report
from worker.evaluation.worst_rows import WorstRow

_CELL_LENGTH = 100
_SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#~$"})


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: verdict first, then tables."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterable[str]:
    tuned = report.comparison.tuned
    yield f"# {_escaped(report.tuned_model or report.job_id)}"
    yield (
        f"{report.task}, {report.method}, on {_escaped(report.base_model)}; "
        f"{report.training_rows:,} rows learnt from, {_held_out(report.held_out)}. "
        f"{_chosen(report)}"
    )
    if report.refusal:
        yield f"**Not deployed:** {report.refusal}."
    yield "## Base against tuned"
    yield _differences(report.comparison)
    yield _intervals(tuned.rows)
    if report.forgetting is not None:
        yield "## What was learnt before, before and after this job"
        yield _differences(report.forgetting)
    if tuned.per_class:
        yield "## Tuned, class by class"
        yield _per_class(tuned.per_class)
    if report.worst_rows:
        yield "## Worst rows"
        yield (
            "Held-out rows of highest loss under the tuned model. Where it is sure of another "
            "class, look at the label first."
        )
        yield _worst_rows(report.worst_rows)
    yield "## How the numbers were made"
    yield _meanings(tuned)


def _held_out(held_out: HeldOut) -> str:
    if held_out.source == "validation_file":
        return f"{held_out.rows:,} held out (all of {held_out.file_id})"
    share = "" if held_out.share is None else f"{held_out.share:.0%} of "
    seed = "" if held_out.seed is None else f", seed {held_out.seed}"
    return f"{held_out.rows:,} held out ({share}{held_out.file_id}{seed})"


def _chosen(report: Report) -> str:
    if report.best_step is None:
        return ""
    if report.best_metric is None:
        return f"Evaluated after the last step, {report.best_step:,}."
    return f"Evaluated after step {report.best_step:,}, the best by {report.best_metric}."


def _differences(comparison: Comparison) -> str:
    base = {one.name: one for one in comparison.base.metrics}
    tuned = {one.name: one for one in comparison.tuned.metrics}
    return _table(
        ("metric", "better is", "base", "tuned", "difference", ""),
        (
            (
                one.name,
                "higher" if METRICS[one.name].is_higher_better else "lower",
                _measurement(base[one.name]),
                _measurement(tuned[one.name]),
                _bounded(one.difference, one.low, one.high, sign="+"),
                _verdict(one),
            )
            for one in comparison.differences
        ),
    )


def _intervals(rows: int) -> str:
    if rows < MIN_ROWS_FOR_INTERVAL:
        return (
            f"{rows} held-out rows are too few for intervals (at least {MIN_ROWS_FOR_INTERVAL}): "
            "the difference may be luck."
        )
    return (
        "In brackets: 95 % intervals of a bootstrap over the held-out rows. Better or worse is "
        "said where the whole interval of the difference is on one side of zero."
    )


def _per_class(scores: Sequence[ClassScores]) -> str:
    return _table(
        ("class", "precision", "recall", "F1", "rows"),
        (
            (
                _cell(one.label),
                f"{one.precision:.3f}",
                f"{one.recall:.3f}",
                f"{one.f1:.3f}",
                f"{one.rows}",
            )
            for one in scores
        ),
    )


def _worst_rows(rows: Sequence[WorstRow]) -> str:
    return _table(
        ("row", "loss", "expected", "predicted", "confidence", "likely label error", "input"),
        (
            (
                f"{one.row}",
                _number(one.loss),
                _cell(one.expected),
                _cell(one.predicted),
                "" if one.confidence is None else f"{one.confidence:.0%}",
                "yes" if one.is_likely_label_error else "",
                _cell(one.excerpt),
            )
            for one in rows
        ),
    )


def _meanings(tuned: Evaluation) -> str:
    meanings = (f"{one.name}: {METRICS[one.name].meaning}" for one in tuned.metrics)
    return "\n".join(f"- {line}" for line in (*meanings, *tuned.notes))


def _verdict(one: Difference) -> str:
    if one.is_better:
        return "better"
    if one.is_worse:
        return "worse"
    return "" if one.low is None else "no clear difference"


def _measurement(one: Measurement) -> str:
    return _bounded(one.value, one.low, one.high)


def _bounded(value: float | None, low: float | None, high: float | None, sign: str = "-") -> str:
    if low is None or high is None:
        return _number(value, sign)
    return f"{_number(value, sign)} [{_number(low, sign)}, {_number(high, sign)}]"


def _number(value: float | None, sign: str = "-") -> str:
    """Return three decimals, or four significant digits of what is larger or smaller."""
    if value is None:
        return "undefined"
    return (
        f"{value:{sign}.3f}" if 0.001 <= abs(value) < 1_000 or not value else f"{value:{sign}.4g}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [list(header), ["---"] * len(header)] + [list(line) for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    """Return what a user's file holds, for one cell."""
    flat = " ".join(text.split())
    return _escaped(flat if len(flat) <= _CELL_LENGTH else flat[: _CELL_LENGTH - 1] + "…")


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, whatever it holds."""
    return text.translate(_SPECIAL)
