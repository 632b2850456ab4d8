"""The held-out rows that the tuned model gets most wrong: hard ones, and wrong labels."""

from collections.abc import Sequence
from math import isnan

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from worker.evaluation.measure import finite

NUM_WORST_ROWS = 20
_EXCERPT_LENGTH = 240


class WorstRow(msgspec.Struct, frozen=True):
    """One row, to be looked at by a person.

    Attributes:
        row: its line or row number in the file it came from, from 1.
        loss: None where it is not a finite number.
        expected: what the file says.
        predicted: what the tuned model says.
        excerpt: the start of the input.
        confidence: the probability that the model gives its prediction; None where it has none.
        is_likely_label_error: the model is as sure of another class as it is on average of that
            class's own rows.
    """

    row: int
    loss: float | None
    expected: str
    predicted: str
    excerpt: str
    confidence: float | None = None
    is_likely_label_error: bool = False


def worst_rows(
    rows: Sequence[int],
    losses: ArrayLike,
    expected: Sequence[str],
    predicted: Sequence[str],
    excerpts: Sequence[str],
    confidences: Sequence[float] | None = None,
    is_suspect: Sequence[bool] | None = None,
    limit: int = NUM_WORST_ROWS,
) -> tuple[WorstRow, ...]:
    """Return the rows of highest loss, worst first; arguments have one entry a row."""
    loss_of = [float(loss) for loss in np.asarray(losses, np.float64)]
    badness = [float("inf") if isnan(loss) else loss for loss in loss_of]
    worst = sorted(range(len(rows)), key=lambda place: (-badness[place], rows[place]))[:limit]
    return tuple(
        WorstRow(
            row=rows[place],
            loss=finite(loss_of[place]),
            expected=excerpt(expected[place]),
            predicted=excerpt(predicted[place]),
            excerpt=excerpt(excerpts[place]),
            confidence=None if confidences is None else finite(float(confidences[place])),
            is_likely_label_error=is_suspect is not None and bool(is_suspect[place]),
        )
        for place in worst
    )


def suspects(truths: ArrayLike, probabilities: ArrayLike) -> list[bool]:
    """Tell which rows' labels are likely to be wrong.

    Confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068): a row belongs
    where its probability reaches the mean probability of that class over the rows so labelled.
    It takes rows that the model has not learnt from.

    Args:
        truths: [rows] int, ids of the classes in the file.
        probabilities: [rows, classes] float.
    """
    labels = np.asarray(truths, np.int64)
    scores = np.asarray(probabilities, np.float64)
    predicted: NDArray[np.int64] = scores.argmax(axis=1)
    usual = np.full(scores.shape[1], np.inf)
    for label in np.unique(labels):
        usual[label] = scores[labels == label, label].mean()
    found: list[bool] = ((predicted != labels) & (scores.max(axis=1) >= usual[predicted])).tolist()
    return found


def excerpt(text: str) -> str:
    """Return the start of a text, marked where it was cut."""
    return text if len(text) <= _EXCERPT_LENGTH else text[: _EXCERPT_LENGTH - 1] + "…"
