"""Intervals, against scipy's and published ones."""

import math
import random

import pytest
from scipy import stats

from app.domain.intervals import (
    MIN_VALUES,
    Sums,
    difference_of_means,
    difference_of_shares,
    mean,
    share,
    student_quantile,
)


def sums(values: list[float]) -> Sums:
    return Sums(len(values), math.fsum(values), math.fsum(value * value for value in values))


@pytest.mark.parametrize("freedom", [7, 7.5, 10, 29, 100, 10_000])
def test_students_quantile(freedom: float) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (0, 20), (3, 17), (50, 100), (20, 20)])
def test_a_share(successes: int, count: int) -> None:
    wanted = stats.binomtest(successes, count).proportion_ci(0.95, "wilson")
    found = share(successes, count)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.value == successes / count


def test_a_difference_of_shares_is_the_published_one() -> None:
    """The example (a) of Newcombe's table II, by his method 10."""
    found = difference_of_shares(56, 70, 48, 80)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_means_and_their_difference() -> None:
    random.seed(2)
    one = [random.gauss(1.0, 0.5) for _ in range(40)]
    other = [random.gauss(0.7, 2.0) for _ in range(15)]
    wanted = stats.ttest_1samp(one, 0).confidence_interval(0.95)
    found = mean(sums(one))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-4)
    wanted = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = difference_of_means(sums(one), sums(other))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-3)


def test_too_few_values_have_no_interval() -> None:
    few, enough = Sums(MIN_VALUES - 1, 1, 1), Sums(MIN_VALUES, 1, 1)
    assert mean(few).low is None
    assert mean(enough).low is not None
    assert difference_of_means(few, enough).low is None
    assert difference_of_means(enough, enough).low is not None
    assert difference_of_shares(1, MIN_VALUES - 1, 1, 100).low is None
    nothing = Sums()
    assert mean(nothing).value is None
    assert difference_of_means(nothing, enough).value is None
    assert difference_of_shares(0, 0, 1, 9).value is None
    assert share(0, 0).value is None


def test_equal_values_have_an_interval_of_nothing() -> None:
    equal = sums([0.5] * 20)
    assert difference_of_means(equal, equal).low == 0
    # What rounding leaves is not of the size of anything measured.
    rounded = sums([0.1] * 20)
    assert difference_of_means(rounded, rounded).low == pytest.approx(0, abs=1e-8)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random.seed(3)
    covered = 0
    for _ in range(1_000):
        one = sums([random.expovariate(1.0) for _ in range(60)])
        other = sums([random.expovariate(0.5) for _ in range(60)])
        found = difference_of_means(one, other)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -1.0 <= found.high
    assert 920 <= covered <= 975
