from math import nan

import msgspec
import numpy as np
import pytest

from app.domain.errors import UnknownName
from worker.evaluation import averages
from worker.evaluation.comparison import Comparison, compare, refusal
from worker.evaluation.measure import resample


def accuracy(*is_right: bool) -> averages.Scored:
    return averages.score(accuracy=is_right)


def test_a_real_difference_is_found_where_the_models_own_intervals_overlap() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(3.0, 1.0, 200)  # Rows differ much more than the models do.
    tuned = base - 0.1 + generator.normal(0, 0.2, 200)
    comparison = compare(averages.score(loss=base), averages.score(loss=tuned))
    (before,), (after,) = comparison.base.metrics, comparison.tuned.metrics
    assert before.low is not None
    assert after.high is not None
    assert after.high > before.low
    (found,) = comparison.differences
    assert found.difference == pytest.approx(np.mean(tuned - base))
    assert found.high is not None
    assert found.high < 0
    assert (found.is_better, found.is_worse) == (True, False)


def test_no_difference_is_found_in_about_nineteen_of_twenty_pairs_of_equal_models() -> None:
    generator = np.random.default_rng(11)
    false_alarms = 0
    for trial in range(200):
        base, tuned = (generator.random(80) < 0.6 for _ in range(2))
        (found,) = compare(accuracy(*base), accuracy(*tuned), seed=trial).differences
        false_alarms += found.is_better or found.is_worse
    assert 2 <= false_alarms <= 22


def test_the_better_direction_is_the_metrics_own() -> None:
    lower, higher = [1.0] * 20, [2.0] * 20
    fallen = compare(
        averages.score(loss=higher, reward=higher), averages.score(loss=lower, reward=lower)
    )
    loss, reward = fallen.differences
    assert loss.difference == reward.difference == -1.0
    assert (loss.is_better, loss.is_worse) == (True, False)
    assert (reward.is_better, reward.is_worse) == (False, True)


def test_the_same_model_is_neither_better_nor_worse() -> None:
    scored = averages.score(loss=np.random.default_rng(0).random(50))
    (found,) = compare(scored, scored).differences
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.is_better
    assert not found.is_worse


def test_few_rows_prove_nothing() -> None:
    (found,) = compare(accuracy(*[False] * 9), accuracy(*[True] * 9)).differences
    assert (found.difference, found.low, found.high) == (1.0, None, None)
    assert not found.is_better


def test_both_models_are_drawn_the_same_rows() -> None:
    rows = np.random.default_rng(0).random(30)
    base, tuned = averages.score(loss=rows), averages.score(loss=rows + 1)
    drawn = resample(tuned, seed=8)["loss"] - resample(base, seed=8)["loss"]
    np.testing.assert_allclose(drawn, 1.0)


def test_an_undefined_side_leaves_the_difference_undefined() -> None:
    comparison = compare(averages.score(loss=[nan] * 20), averages.score(loss=[1.0] * 20))
    (found,) = comparison.differences
    assert (found.base, found.tuned, found.difference) == (None, 1.0, None)
    assert not found.is_better
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison


def test_a_metric_that_only_one_model_has_is_not_compared() -> None:
    comparison = compare(averages.score(loss=[1.0]), averages.score(reward=[0.0], loss=[1.0]))
    assert [one.name for one in comparison.differences] == ["loss"]


def test_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not the same rows: 1 and 2"):
        compare(accuracy(True), accuracy(True, True))


@pytest.mark.parametrize(
    ("base", "tuned", "min_gain", "is_refused"),
    [
        (0.5, 0.75, 0.25, False),
        (0.5, 0.75, 0.3, True),
        (0.5, 0.75, 0.0, False),
        (0.5, 0.5, 0.0, True),
        (0.5, 0.25, 0.0, True),
        (0.5, 0.25, -1.0, True),
    ],
)
def test_a_model_is_deployed_if_it_gains_what_was_asked(
    base: float, tuned: float, min_gain: float, is_refused: bool
) -> None:
    up = compare(averages.score(reward=[base]), averages.score(reward=[tuned]))
    assert (refusal(up, "reward", min_gain) is not None) is is_refused
    down = compare(averages.score(loss=[-base]), averages.score(loss=[-tuned]))
    assert (refusal(down, "loss", min_gain) is not None) is is_refused


def test_a_refusal_says_what_was_reached_and_what_was_asked() -> None:
    comparison = compare(averages.score(loss=[3.0]), averages.score(loss=[2.75]))
    assert refusal(comparison, "loss", 0.5) == (
        "loss is 2.75 against 3 of the base model: a gain of 0.25, where 0.5 was asked"
    )
    assert refusal(compare(accuracy(True), accuracy(True)), "accuracy", 0.0) == (
        "accuracy is 1 against 1 of the base model: a gain of 0, where more than 0 was asked"
    )


def test_what_cannot_be_compared_is_refused() -> None:
    comparison = compare(averages.score(loss=[nan]), averages.score(loss=[2.75]))
    assert refusal(comparison, "loss", 0.0) == (
        "loss could not be compared: base undefined, tuned 2.75"
    )
    assert "could not be compared" in str(refusal(comparison, "accuracy", 0.0))
    with pytest.raises(UnknownName):
        refusal(comparison, "beauty", 0.0)
