"""The numbers of an evaluation, each with the interval that its rows allow.

A family of metrics (`classification`, `generation` …) turns predictions and references into a
`Scored`: functions that compute metrics on any drawing of the rows. On every row once they give the
value; on rows drawn with replacement, the bootstrap (Efron 1979,
https://doi.org/10.1214/aos/1176344552), from whose percentiles the 95 % interval is taken.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]

NUM_RESAMPLES = 1_000
MIN_RESAMPLES = 40  # Fewer leave none beyond each bound of 95 %.
MIN_ROWS_FOR_INTERVAL = 10  # The percentiles of fewer are far too narrow to be shown to anyone.
_NUMBERS_IN_A_CHUNK = 2_000_000


class Measurement(msgspec.Struct, frozen=True):
    """One metric's value and its 95 % interval; None where there is none.

    Attributes:
        name: in `app.domain.metrics.METRICS`.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None


class ClassScores(msgspec.Struct, frozen=True):
    """One line of a classification report; `rows` is how often the label is true."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


class Confusion(msgspec.Struct, frozen=True):
    """How often a true label (row) was predicted as another (column)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Evaluation(msgspec.Struct, frozen=True):
    """One model on the held-out rows.

    Attributes:
        notes: how a number was computed where that decides what it may be compared with.
    """

    rows: int
    metrics: tuple[Measurement, ...]
    per_class: tuple[ClassScores, ...] = ()
    confusion: Confusion | None = None
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """Return a metric's value; None if it is undefined or was not measured."""
        return next((one.value for one in self.metrics if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A few metrics that are computed together.

    Attributes:
        score: takes draws [drawings, rows] int64, in each line the indices of the rows drawn;
            returns by metric the values [drawings] float64, NaN where undefined.
        resamples: how many drawings it is asked for; fewer where a metric is slow, and below
            `MIN_RESAMPLES` where it is too slow for an interval.
    """

    score: Callable[[Draws], Mapping[str, Floats]]
    resamples: int = NUM_RESAMPLES


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's predictions on the held-out rows, ready to be measured."""

    rows: int
    scorers: tuple[Scorer, ...]
    per_class: tuple[ClassScores, ...] = ()
    confusion: Confusion | None = None
    notes: tuple[str, ...] = ()


def joined(first: Scored, *others: Scored) -> Scored:
    """Return the metrics of several families on the same rows as one."""
    parts = (first, *others)
    if len({part.rows for part in parts}) > 1:
        raise ValueError(f"not the same rows: {[part.rows for part in parts]}")
    return Scored(
        rows=first.rows,
        scorers=tuple(scorer for part in parts for scorer in part.scorers),
        per_class=next((part.per_class for part in parts if part.per_class), ()),
        confusion=next((part.confusion for part in parts if part.confusion), None),
        notes=tuple(note for part in parts for note in part.notes),
    )


def evaluate(scored: Scored, seed: int = 0) -> Evaluation:
    """Return every metric with its interval; the same seed gives the same numbers."""
    return evaluation(scored, values(scored), resample(scored, seed))


def evaluation(
    scored: Scored, found: Mapping[str, float], resampled: Mapping[str, Floats]
) -> Evaluation:
    """Return what `values` and `resample` gave, as the evaluation of a model."""
    return Evaluation(
        rows=scored.rows,
        metrics=tuple(
            Measurement(name, finite(value), *interval(resampled[name]))
            for name, value in found.items()
        ),
        per_class=scored.per_class,
        confusion=scored.confusion,
        notes=scored.notes,
    )


def values(scored: Scored) -> dict[str, float]:
    """Return the metrics alone, which is quick: to choose the best checkpoint by, for instance."""
    if scored.rows == 0:
        raise ValueError("no rows to measure on")
    every_row = np.arange(scored.rows)[None, :]
    return {
        name: float(found[0])
        for scorer in scored.scorers
        for name, found in scorer.score(every_row).items()
    }


def resample(scored: Scored, seed: int = 0) -> dict[str, Floats]:
    """Return each metric's values on drawings of the rows.

    The drawings depend on the seed and the number of rows alone, so the values of two models on
    the same rows are paired. Rows too few for an interval are drawn once only.
    """
    found: dict[str, Floats] = {}
    for scorer in scored.scorers:
        resamples = scorer.resamples if scored.rows >= MIN_ROWS_FOR_INTERVAL else 1
        chunks = [scorer.score(draws) for draws in _drawings(scored.rows, resamples, seed)]
        found |= {name: np.concatenate([one[name] for one in chunks]) for name in chunks[0]}
    return found


def interval(resampled: Floats) -> tuple[float | None, float | None]:
    """Return the bounds of the central 95 %; None where too few values are there or defined."""
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < max(MIN_RESAMPLES, len(resampled) / 2):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def finite(value: float) -> float | None:
    """Return the value; None for NaN and the infinities, which JSON has no word for."""
    return float(value) if isfinite(value) else None


def means(**per_row: ArrayLike) -> Scorer:
    """Return the scorer of metrics that are means over rows, from their values [rows]."""
    columns = np.stack([np.asarray(column, np.float64) for column in per_row.values()], axis=1)

    def score(draws: Draws) -> dict[str, Floats]:
        totals = sums(draws, columns) / draws.shape[1]
        return dict(zip(per_row, totals.T, strict=True))

    return Scorer(score)


def sums(draws: Draws, per_row: Floats) -> Floats:
    """Return the sums over drawn rows [drawings, columns] of what each row has [rows, columns].

    A column that holds NaN or an infinity anywhere is NaN in every drawing.
    """
    drawings, rows = draws.shape
    places = draws + rows * np.arange(drawings)[:, None]
    times = np.bincount(places.ravel(), minlength=drawings * rows).reshape(drawings, rows)
    with np.errstate(invalid="ignore"):
        return times.astype(np.float64) @ per_row


def _drawings(rows: int, resamples: int, seed: int) -> Iterator[Draws]:
    """Yield `resamples` drawings of the rows with replacement, a bounded number at a time."""
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _NUMBERS_IN_A_CHUNK // rows)
    for start in range(0, resamples, at_a_time):
        size = min(at_a_time, resamples - start)
        yield generator.integers(0, rows, (size, rows))
