"""Predicting a number."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, rankdata
from sklearn.metrics import (
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    root_mean_squared_error,
)

from worker.evaluation.measure import Draws, Floats, Scored, Scorer


def score(truths: ArrayLike, predictions: ArrayLike) -> Scored:
    """Score predicted numbers [rows] against the true ones [rows]."""
    true = np.asarray(truths, np.float64)
    predicted = np.asarray(predictions, np.float64)

    def errors(draws: Draws) -> dict[str, Floats]:
        if not np.isfinite(predicted).all():
            return dict.fromkeys(("mse", "rmse", "mae", "r2"), np.full(len(draws), np.nan))
        # Each drawing is a column, which scikit-learn takes for one output of many.
        columns = true[draws].T, predicted[draws].T
        return {
            "mse": mean_squared_error(*columns, multioutput="raw_values"),
            "rmse": root_mean_squared_error(*columns, multioutput="raw_values"),
            "mae": mean_absolute_error(*columns, multioutput="raw_values"),
            "r2": _explained(*columns),
        }

    return Scored(len(true), (Scorer(errors), rank_correlation(true, predicted)))


def rank_correlation(true: Floats, predicted: Floats) -> Scorer:
    """Return Spearman's correlation; undefined where either side is constant."""

    def score(draws: Draws) -> dict[str, Floats]:
        sides = true[draws], predicted[draws]
        is_varied = np.all([np.ptp(side, axis=1) > 0 for side in sides], axis=0)
        found = np.full(len(draws), np.nan)
        if is_varied.any():
            # Pearson's of the ranks, which SciPy finds for many samples at once.
            ranks = [rankdata(side[is_varied], axis=1) for side in sides]
            found[is_varied] = pearsonr(*ranks, axis=1).statistic
        return {"spearman": found}

    return Scorer(score)


def _explained(true: Floats, predicted: Floats) -> Floats:
    """Return R2 [drawings]; undefined where the target is constant, as nothing is to be explained.

    Args:
        true: [rows, drawings].
        predicted: [rows, drawings].
    """
    is_constant = np.ptp(true, axis=0) == 0
    found = np.full(true.shape[1], np.nan)
    if not is_constant.all():
        varied = true[:, ~is_constant], predicted[:, ~is_constant]
        found[~is_constant] = r2_score(*varied, multioutput="raw_values")
    return found
