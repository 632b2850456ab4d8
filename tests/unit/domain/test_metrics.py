from math import inf, nan

import pytest

from app.domain.errors import UnknownName
from app.domain.metrics import METRICS

LOWER_IS_BETTER = {"loss", "perplexity", "mse", "rmse", "mae", "wer", "cer"}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_which_way_is_better_and_what_it_means(name: str) -> None:
    metric = METRICS[name]
    assert metric.is_higher_better is (name not in LOWER_IS_BETTER)
    assert metric.meaning.endswith(".")
    assert "\n" not in metric.meaning


@pytest.mark.parametrize(
    ("name", "before", "after", "gain"),
    [
        ("accuracy", 0.5, 0.75, 0.25),
        ("accuracy", 0.75, 0.5, -0.25),
        ("loss", 2.0, 1.5, 0.5),
        ("loss", 1.5, 2.0, -0.5),
        ("r2", -1.0, 0.5, 1.5),
    ],
)
def test_a_gain_is_positive_where_the_model_got_better(
    name: str, before: float, after: float, gain: float
) -> None:
    assert METRICS[name].gain(before, after) == gain


@pytest.mark.parametrize("missing", [None, nan, inf, -inf])
def test_there_is_no_gain_over_a_number_that_is_not_there(missing: float | None) -> None:
    assert METRICS["loss"].gain(missing, 1.0) is None
    assert METRICS["loss"].gain(1.0, missing) is None


def test_an_improvement_is_more_than_min_delta_in_the_better_direction() -> None:
    loss = METRICS["loss"]
    assert loss.is_improved(1.0, 0.5)
    assert not loss.is_improved(1.0, 1.0)
    assert not loss.is_improved(1.0, 1.5)
    assert not loss.is_improved(1.0, 0.75, min_delta=0.25)
    assert loss.is_improved(1.0, 0.5, min_delta=0.25)
    assert METRICS["f1_macro"].is_improved(0.5, 0.75)
    assert not METRICS["f1_macro"].is_improved(0.75, 0.5)


@pytest.mark.parametrize("missing", [None, nan, inf])
def test_any_number_improves_on_none_and_none_improves_on_nothing(missing: float | None) -> None:
    assert METRICS["loss"].is_improved(missing, 3.0)
    assert not METRICS["loss"].is_improved(3.0, missing)
    assert not METRICS["loss"].is_improved(missing, missing)


def test_an_unknown_metric_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"unknown metric 'f2'; known: .*f1_macro"):
        METRICS["f2"]
