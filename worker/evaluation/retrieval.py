"""Embeddings: does an anchor find what belongs to it, and does closeness follow the score?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import ndcg_score

from worker.evaluation.measure import Floats, Scored, means
from worker.evaluation.regression import rank_correlation

_CUTOFFS = (1, 5, 10)


def score(similarities: ArrayLike, is_relevant: ArrayLike | None = None) -> Scored:
    """Score the ranking of all candidates for each anchor; anchors are the rows.

    Among equals, what does not belong to the anchor is ranked first: a model that finds everything
    alike must not score.

    Args:
        similarities: [anchors, candidates] float.
        is_relevant: [anchors, candidates] bool, at least one a row; None where the candidates are
            the anchors' own partners, in the same order.
    """
    closeness = np.asarray(similarities, np.float64)
    relevant = (
        np.eye(*closeness.shape, dtype=np.bool_)
        if is_relevant is None
        else np.asarray(is_relevant, np.bool_)
    )
    order = np.lexsort((relevant, -closeness), axis=1)
    ranked = np.take_along_axis(relevant, order, axis=1)
    num_relevant = ranked.sum(axis=1)
    per_row = {
        f"recall_at_{cutoff}": ranked[:, :cutoff].sum(axis=1) / num_relevant for cutoff in _CUTOFFS
    }
    per_row["mrr"] = 1 / (1 + ranked.argmax(axis=1))
    per_row["ndcg"] = _gains(ranked)
    if not np.isfinite(closeness).all():
        per_row = {name: np.full(len(closeness), np.nan) for name in per_row}
    return Scored(len(closeness), (means(**per_row),))


def score_pairs(targets: ArrayLike, similarities: ArrayLike) -> Scored:
    """Score the similarity of each row's two texts [rows] against the wanted score [rows]."""
    wanted = np.asarray(targets, np.float64)
    found = np.asarray(similarities, np.float64)
    return Scored(len(wanted), (rank_correlation(wanted, found),))


def same_texts(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return [rows, rows] bool, which texts are equal: a duplicate of the partner belongs too."""
    _, ids = np.unique(np.array(texts, dtype=object), return_inverse=True)
    equal: NDArray[np.bool_] = ids[:, None] == ids
    return equal


def _gains(ranked: NDArray[np.bool_]) -> Floats:
    """Return each row's nDCG [anchors], from what belongs to it in ranked order."""
    num_candidates = ranked.shape[1]
    if num_candidates < 2:  # scikit-learn refuses to rank one candidate.
        return np.full(len(ranked), np.nan)
    places = -np.arange(num_candidates, dtype=np.float64)[None, :]
    return np.array([ndcg_score(row[None, :], places) for row in ranked])
