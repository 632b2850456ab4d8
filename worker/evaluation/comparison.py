"""Base against tuned on the same rows: is the difference more than luck with the rows?"""

from collections.abc import Mapping

import msgspec

from app.domain.metrics import METRICS
from worker.evaluation.measure import (
    Evaluation,
    Floats,
    Scored,
    evaluation,
    finite,
    interval,
    resample,
    values,
)


class Difference(msgspec.Struct, frozen=True):
    """What training changed in one metric: the tuned model's value less the base model's.

    Attributes:
        difference: None where either value is undefined.
        low: lower bound of its 95 % interval, from a bootstrap that draws the same rows for both
            models: what makes a row hard for both cancels out.
        is_better: the whole interval is on the metric's better side of zero.
        is_worse: the whole interval is on the other side.
    """

    name: str
    base: float | None
    tuned: float | None
    difference: float | None
    low: float | None
    high: float | None
    is_better: bool
    is_worse: bool


class Comparison(msgspec.Struct, frozen=True):
    """Both models on the same rows, and their difference in each metric that both have."""

    base: Evaluation
    tuned: Evaluation
    differences: tuple[Difference, ...]


def compare(base: Scored, tuned: Scored, seed: int = 0) -> Comparison:
    """Return what a bootstrap of the rows says of both models and of their differences."""
    if base.rows != tuned.rows:
        raise ValueError(f"not the same rows: {base.rows} and {tuned.rows}")
    base_values, tuned_values = values(base), values(tuned)
    base_draws, tuned_draws = resample(base, seed), resample(tuned, seed)
    return Comparison(
        base=evaluation(base, base_values, base_draws),
        tuned=evaluation(tuned, tuned_values, tuned_draws),
        differences=tuple(
            _difference(name, base_values, tuned_values, base_draws, tuned_draws)
            for name in tuned_values
            if name in base_values
        ),
    )


def refusal(comparison: Comparison, metric: str, min_gain: float) -> str | None:
    """Return why a model is not to be deployed; None if it beats its base by what was asked.

    Args:
        comparison: of the model that is to be deployed.
        metric: the one that was asked for.
        min_gain: in the metric's better direction; at 0, any gain is enough.
    """
    before, after = comparison.base.value(metric), comparison.tuned.value(metric)
    gain = METRICS[metric].gain(before, after)
    if gain is None:
        return f"{metric} could not be compared: base {_text(before)}, tuned {_text(after)}"
    if gain > 0 and gain >= min_gain:
        return None
    return (
        f"{metric} is {_text(after)} against {_text(before)} of the base model: a gain of "
        f"{_text(gain)}, where {'more than ' if min_gain <= 0 else ''}{_text(min_gain)} was asked"
    )


def _difference(
    name: str,
    base_values: Mapping[str, float],
    tuned_values: Mapping[str, float],
    base_draws: Mapping[str, Floats],
    tuned_draws: Mapping[str, Floats],
) -> Difference:
    before, after = finite(base_values[name]), finite(tuned_values[name])
    if before is None or after is None:
        return Difference(name, before, after, None, None, None, False, False)
    low, high = interval(tuned_draws[name] - base_draws[name])
    is_up = low is not None and low > 0
    is_down = high is not None and high < 0
    better, worse = (is_up, is_down) if METRICS[name].is_higher_better else (is_down, is_up)
    return Difference(name, before, after, after - before, low, high, better, worse)


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
