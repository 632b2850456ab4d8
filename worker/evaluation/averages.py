"""Metrics that are plain means over rows, whatever the task: rewards, preferences, losses."""

import numpy as np
from numpy.typing import ArrayLike

from worker.evaluation.measure import Scored, means


def score(**per_row: ArrayLike) -> Scored:
    """Return the means of named numbers, each with one value a row.

    Args:
        per_row: by name in `METRICS`: `reward=[…]`, `preference_accuracy=[…]`, `loss=[…]`.
    """
    rows = len(np.asarray(next(iter(per_row.values()))))
    return Scored(rows, (means(**per_row),))
