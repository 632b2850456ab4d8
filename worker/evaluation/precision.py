"""Precision, recall and F1 from counts, for many drawings of the rows at once."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from worker.evaluation.measure import Floats


class PrecisionRecall(NamedTuple):
    """Three arrays of the shape of the counts they come from."""

    precision: Floats
    recall: Floats
    f1: Floats


def from_counts(hits: Floats, false_alarms: Floats, misses: Floats) -> PrecisionRecall:
    """Return precision, recall and F1 for each element of three arrays of one shape.

    What has no hit is 0, as in scikit-learn; what was neither true nor predicted is NaN. Every
    element becomes a class of its own and its counts become weights: a thousand bootstrap samples
    cost one call of scikit-learn, where a call for each would take seconds.
    """
    num_classes = hits.size
    classes = np.arange(num_classes)
    nothing = np.full(num_classes, num_classes)
    weights = np.concatenate([hits.ravel(), false_alarms.ravel(), misses.ravel()])
    counted = weights > 0
    if not counted.any():
        empty = np.full(hits.shape, np.nan)
        return PrecisionRecall(empty, empty, empty)
    found = precision_recall_fscore_support(
        np.concatenate([classes, nothing, classes])[counted],
        np.concatenate([classes, classes, nothing])[counted],
        labels=classes,
        sample_weight=weights[counted],
        average=None,
        zero_division=0.0,
    )
    is_absent = hits + false_alarms + misses == 0
    return PrecisionRecall(
        *(np.where(is_absent, np.nan, each.reshape(hits.shape)) for each in found[:3])
    )
