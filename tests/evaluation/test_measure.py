from math import inf, isnan, nan

import msgspec
import numpy as np
import pytest

from worker.evaluation import averages, language
from worker.evaluation.measure import (
    MIN_ROWS_FOR_INTERVAL,
    NUM_RESAMPLES,
    Evaluation,
    Scored,
    Scorer,
    evaluate,
    interval,
    joined,
    means,
    resample,
    sums,
    values,
)


def test_a_mean_has_its_value_and_an_interval_around_it() -> None:
    rewards = np.arange(100) / 100
    (found,) = evaluate(averages.score(reward=rewards)).metrics
    assert found.name == "reward"
    assert found.value == pytest.approx(0.495)
    # The normal approximation: 1.96 standard errors to each side.
    error = 1.96 * rewards.std() / 10
    assert found.low == pytest.approx(0.495 - error, abs=0.01)
    assert found.high == pytest.approx(0.495 + error, abs=0.01)


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        draws = generator.random(60) < 0.7
        (found,) = evaluate(averages.score(accuracy=draws), seed=trial).metrics
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    scored = averages.score(reward=np.random.default_rng(0).random(50))
    assert evaluate(scored, seed=1) == evaluate(scored, seed=1)
    assert evaluate(scored, seed=1) != evaluate(scored, seed=2)


def test_drawings_are_those_of_the_seed_however_many_rows_fit_at_a_time() -> None:
    rows = 3_000  # 1,000 drawings of them do not fit into one chunk.
    scored = averages.score(reward=np.arange(rows))
    drawn = np.random.default_rng(5).integers(0, rows, (NUM_RESAMPLES, rows))
    np.testing.assert_allclose(resample(scored, seed=5)["reward"], drawn.mean(axis=1))


@pytest.mark.parametrize("rows", [1, MIN_ROWS_FOR_INTERVAL - 1])
def test_too_few_rows_have_a_value_without_interval(rows: int) -> None:
    (found,) = evaluate(averages.score(reward=[0.25] * rows)).metrics
    assert (found.value, found.low, found.high) == (0.25, None, None)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        values(averages.score(reward=[]))


@pytest.mark.parametrize("broken", [nan, inf, -inf])
def test_a_number_that_is_not_finite_becomes_null(broken: float) -> None:
    evaluation = evaluate(averages.score(reward=[1.0] * 20, loss=[1.0] * 19 + [broken]))
    reward, loss = evaluation.metrics
    assert (reward.value, reward.low) == (1.0, 1.0)
    assert (loss.value, loss.low, loss.high) == (None, None, None)
    assert b'"loss","value":null' in msgspec.json.encode(evaluation)
    assert msgspec.json.decode(msgspec.json.encode(evaluation), type=Evaluation) == evaluation


def test_drawings_in_which_a_metric_is_undefined_are_left_out_unless_they_are_most() -> None:
    some = np.array([nan] * 400 + list(np.linspace(0, 1, 600)))
    low, high = interval(some)
    assert low == pytest.approx(0.025, abs=0.001)
    assert high == pytest.approx(0.975, abs=0.001)
    assert interval(np.array([nan] * 600 + [1.0] * 400)) == (None, None)


@pytest.mark.parametrize(("resamples", "has_interval"), [(40, True), (39, False), (1, False)])
def test_an_interval_takes_enough_drawings(resamples: int, has_interval: bool) -> None:
    assert (interval(np.arange(resamples) / resamples) != (None, None)) is has_interval


def test_rows_too_few_for_an_interval_are_drawn_once() -> None:
    few = averages.score(reward=np.ones(MIN_ROWS_FOR_INTERVAL - 1))
    assert len(resample(few)["reward"]) == 1


def test_a_slow_scorer_is_asked_for_fewer_drawings() -> None:
    slow = Scorer(lambda draws: {"mcc": np.ones(len(draws))}, resamples=40)
    scored = Scored(30, (means(reward=np.ones(30)), slow))
    assert {name: len(found) for name, found in resample(scored).items()} == {
        "reward": NUM_RESAMPLES,
        "mcc": 40,
    }


def test_sums_count_a_row_as_often_as_it_was_drawn() -> None:
    draws = np.array([[0, 0, 2], [1, 1, 1]])
    np.testing.assert_array_equal(
        sums(draws, np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])), [[6, 60], [6, 60]]
    )


def test_families_are_joined_on_the_same_rows_only() -> None:
    both = joined(averages.score(loss=[1.0, 2.0]), averages.score(reward=[0.0, 1.0]))
    assert values(both) == {"loss": 1.5, "reward": 0.5}
    with pytest.raises(ValueError, match=r"not the same rows: \[2, 3\]"):
        joined(averages.score(loss=[1.0, 2.0]), averages.score(reward=[0.0, 1.0, 1.0]))


def test_a_metric_that_was_not_measured_has_no_value() -> None:
    evaluation = evaluate(averages.score(reward=[1.0]))
    assert evaluation.value("reward") == 1.0
    assert evaluation.value("accuracy") is None


def test_language_is_measured_over_tokens_not_over_rows() -> None:
    found = values(language.score(losses=[1.0, 8.0], tokens=[1, 3], correct=[1, 0]))
    assert found["loss"] == pytest.approx(9 / 4)
    assert found["perplexity"] == pytest.approx(np.exp(9 / 4))
    assert found["token_accuracy"] == pytest.approx(1 / 4)


def test_language_without_counted_tokens_has_no_accuracy() -> None:
    assert set(values(language.score([1.0], [1]))) == {"loss", "perplexity"}


def test_rows_without_learnt_tokens_and_a_diverged_model_have_no_perplexity() -> None:
    assert isnan(values(language.score([0.0], [0]))["loss"])
    diverged = evaluate(language.score([2_000.0] * 12, [1] * 12))
    assert diverged.value("loss") == 2_000.0
    assert diverged.value("perplexity") is None
