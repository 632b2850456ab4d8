"""Which version of an alias does better: estimates with intervals, and a plain verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.domain.intervals import (
    MIN_VALUES,
    Estimate,
    Sums,
    difference_of_means,
    difference_of_shares,
)
from app.domain.traffic import Durations, Tally

Measure = Literal["error_rate", "latency_seconds", "first_token_seconds", "feedback"]
Verdict = Literal["better", "worse", "undecided", "too_few"]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a version.

    Attributes:
        tally: of requests that somebody waited for.
        feedback: scores that its answers were given.
    """

    model: str
    weight: float
    tally: Tally = field(default_factory=Tally)
    feedback: Sums = field(default_factory=Sums)

    @property
    def judged(self) -> int:
        """Requests that were answered, or not by the version's fault."""
        return self.tally.answered + self.tally.failed


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one version does differently in one measure.

    Attributes:
        count: of values of the version, and of the baseline.
        verdict: "better" and "worse" only if the whole interval is on one side of zero.
        text: the same in a sentence.
    """

    measure: Measure
    model: str
    difference: Estimate
    count: int
    baseline_count: int
    verdict: Verdict
    text: str


def sums_of(durations: Durations) -> Sums:
    return Sums(durations.count, durations.total, durations.squares)


def compare(records: Sequence[Record], baseline: Record) -> list[Comparison]:
    """Return how every other version differs from a baseline, measure by measure."""
    return [
        _compared(measure, record, baseline)
        for record in records
        if record is not baseline
        for measure in _MEASURES
    ]


@dataclass(frozen=True, slots=True)
class _Measured:
    """How a measure is taken and told.

    Attributes:
        unit: after a number in a sentence.
        counted: what its values are of.
    """

    title: str
    is_higher_better: bool
    unit: str
    counted: str
    count: Callable[[Record], int]
    difference: Callable[[Record, Record], Estimate]


_MEASURES: dict[Measure, _Measured] = {
    "error_rate": _Measured(
        "error rate",
        False,
        "",
        "requests",
        lambda one: one.judged,
        lambda one, base: difference_of_shares(
            one.tally.failed, one.judged, base.tally.failed, base.judged
        ),
    ),
    "latency_seconds": _Measured(
        "mean latency",
        False,
        " s",
        "answers",
        lambda one: one.tally.durations.count,
        lambda one, base: difference_of_means(
            sums_of(one.tally.durations), sums_of(base.tally.durations)
        ),
    ),
    "first_token_seconds": _Measured(
        "mean time to the first token",
        False,
        " s",
        "streams",
        lambda one: one.tally.first_tokens.count,
        lambda one, base: difference_of_means(
            sums_of(one.tally.first_tokens), sums_of(base.tally.first_tokens)
        ),
    ),
    "feedback": _Measured(
        "mean feedback",
        True,
        "",
        "scores",
        lambda one: one.feedback.count,
        lambda one, base: difference_of_means(one.feedback, base.feedback),
    ),
}


def _compared(name: Measure, record: Record, baseline: Record) -> Comparison:
    measured = _MEASURES[name]
    difference = measured.difference(record, baseline)
    verdict = _verdict(difference, measured.is_higher_better)
    count, baseline_count = measured.count(record), measured.count(baseline)
    return Comparison(
        measure=name,
        model=record.model,
        difference=difference,
        count=count,
        baseline_count=baseline_count,
        verdict=verdict,
        text=_sentence(
            measured, record.model, difference, verdict, f"{count} and {baseline_count}"
        ),
    )


def _verdict(difference: Estimate, is_higher_better: bool) -> Verdict:
    if difference.low is None or difference.high is None:
        return "too_few"
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.low > 0) == is_higher_better else "worse"


def _sentence(
    measured: _Measured, model: str, difference: Estimate, verdict: Verdict, counts: str
) -> str:
    of = f"{counts} {measured.counted}"
    if difference.value is None or difference.low is None or difference.high is None:
        return f"Too little is known of the {measured.title}: {of}, at least {MIN_VALUES} each."
    interval = f"[{difference.low:.3g}, {difference.high:.3g}]{measured.unit}"
    if verdict == "undecided":
        return (
            f"The {measured.title} of {model} cannot be told from the baseline's: a difference of "
            f"{difference.value:.3g} {interval}, {of}."
        )
    direction = "higher" if difference.value > 0 else "lower"
    return (
        f"The {measured.title} of {model} is {direction} by {abs(difference.value):.3g}, a "
        f"difference of {difference.value:.3g} {interval}, {of}: {verdict}."
    )
