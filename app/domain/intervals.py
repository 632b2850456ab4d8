"""Confidence intervals of shares, means and their differences, from sums that can be added up."""

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95

# Fewer values say too little about their own spread.
MIN_VALUES = 8

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, slots=True)
class Sums:
    """Some values, as far as their mean and variance go."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Of the values, as an estimate from this sample; there must be two at least."""
        # What rounding leaves of equal values may be below zero.
        return max(self.squares - self.total * self.mean, 0.0) / (self.count - 1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its interval; all None where there is nothing or too little to tell."""

    value: float | None
    low: float | None = None
    high: float | None = None


def share(successes: int, count: int) -> Estimate:
    """Return a share with its score interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    return Estimate(*_score_interval(successes, count)) if count else Estimate(None)


def mean(values: Sums) -> Estimate:
    """Return a mean with its interval by Student's distribution."""
    if values.count == 0:
        return Estimate(None)
    if values.count < MIN_VALUES:
        return Estimate(values.mean)
    reach = student_quantile(values.count - 1) * math.sqrt(values.variance / values.count)
    return Estimate(values.mean, values.mean - reach, values.mean + reach)


def difference_of_shares(
    successes: int, count: int, base_successes: int, base_count: int
) -> Estimate:
    """Return how much larger a share is than another, with its interval.

    Source: Newcombe, "Interval estimation for the difference between independent proportions",
    1998, method 10, which combines both score intervals.
    """
    if count == 0 or base_count == 0:
        return Estimate(None)
    value = successes / count - base_successes / base_count
    if min(count, base_count) < MIN_VALUES:
        return Estimate(value)
    rate, low, high = _score_interval(successes, count)
    base_rate, base_low, base_high = _score_interval(base_successes, base_count)
    down = math.hypot(rate - low, base_high - base_rate)
    up = math.hypot(high - rate, base_rate - base_low)
    return Estimate(value, value - down, value + up)


def difference_of_means(values: Sums, base: Sums) -> Estimate:
    """Return how much larger a mean is than another, with its interval.

    Source: Welch, "The generalization of Student's problem when several different population
    variances are involved", 1947.
    """
    if values.count == 0 or base.count == 0:
        return Estimate(None)
    value = values.mean - base.mean
    if min(values.count, base.count) < MIN_VALUES:
        return Estimate(value)
    one, other = values.variance / values.count, base.variance / base.count
    if one + other == 0:
        return Estimate(value, value, value)
    freedom = (one + other) ** 2 / (
        one * one / (values.count - 1) + other * other / (base.count - 1)
    )
    reach = student_quantile(freedom) * math.sqrt(one + other)
    return Estimate(value, value - reach, value + reach)


def student_quantile(freedom: float) -> float:
    """Return the quantile of Student's distribution that a two-sided interval reaches to.

    Args:
        freedom: degrees of freedom; from 7 on it is right to within 0.001.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _score_interval(successes: int, count: int) -> tuple[float, float, float]:
    """Return a share with its bounds; there must be a value at least."""
    rate, z = successes / count, _Z
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count)
    reach *= math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    # The bounds of nothing and of all are exact, whatever rounding makes of them.
    low = 0.0 if successes == 0 else middle - reach
    high = 1.0 if successes == count else middle + reach
    return rate, low, high
