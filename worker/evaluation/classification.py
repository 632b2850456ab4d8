"""Classification, with one label a row or any number of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import confusion_matrix

from worker.evaluation.measure import (
    MIN_RESAMPLES,
    NUM_RESAMPLES,
    ClassScores,
    Confusion,
    Draws,
    Floats,
    Scored,
    Scorer,
    means,
    sums,
)
from worker.evaluation.precision import from_counts

_MAX_CLASSES_FOR_INTERVAL = NUM_RESAMPLES // MIN_RESAMPLES
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


def score_single_label(
    labels: Sequence[str], truths: ArrayLike, probabilities: ArrayLike
) -> Scored:
    """Score predictions of one label a row; the likeliest is the predicted one.

    Args:
        labels: names of the classes, in the order of their ids.
        truths: [rows] int, ids of the true classes.
        probabilities: [rows, classes] float, of each class.
    """
    truth_ids = np.asarray(truths, np.int64)
    scores = np.asarray(probabilities, np.float64)
    predicted = scores.argmax(axis=1)
    is_right = truth_ids == predicted
    is_true = _one_hot(truth_ids, len(labels))
    is_predicted = _one_hot(predicted, len(labels))
    # Of two classes, each ranks the rows in the other's reverse order: one is enough.
    ranked = slice(1, 2) if len(labels) == 2 else slice(None)
    counts = confusion_matrix(truth_ids, predicted, labels=np.arange(len(labels)))
    return Scored(
        rows=len(truth_ids),
        scorers=(
            means(loss=log_losses(truth_ids, scores), accuracy=is_right),
            _counted(is_true, is_predicted, one_label=True),
            _ranking(is_true[:, ranked], scores[:, ranked]),
        ),
        per_class=_per_class(labels, is_true, is_predicted),
        confusion=Confusion(tuple(labels), tuple(tuple(line) for line in counts.tolist())),
    )


def score_multi_label(
    labels: Sequence[str], truths: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5
) -> Scored:
    """Score predictions of any number of labels a row.

    Args:
        labels: names of the classes, in the order of the columns.
        truths: [rows, classes] bool, whether a label applies.
        probabilities: [rows, classes] float, of each label by itself.
        threshold: a label is predicted from this probability on.
    """
    is_true = np.asarray(truths, np.bool_)
    scores = np.asarray(probabilities, np.float64)
    is_predicted = scores >= threshold
    likelihoods = np.where(is_true, scores, 1 - scores)
    return Scored(
        rows=len(is_true),
        scorers=(
            means(
                loss=-np.log(np.maximum(likelihoods, _LEAST_PROBABILITY)).mean(axis=1),
                accuracy=(is_true == is_predicted).all(axis=1),
            ),
            _counted(is_true, is_predicted, one_label=False),
            _ranking(is_true, scores),
        ),
        per_class=_per_class(labels, is_true, is_predicted),
    )


def log_losses(truths: NDArray[np.int64], probabilities: Floats) -> Floats:
    """Return each row's negative log-likelihood [rows] in nats, finite for a probability of 0."""
    likelihoods = np.take_along_axis(probabilities, truths[:, None], axis=1)[:, 0]
    losses: Floats = -np.log(np.maximum(likelihoods, _LEAST_PROBABILITY))
    return losses


def _per_class(
    labels: Sequence[str], is_true: NDArray[np.bool_], is_predicted: NDArray[np.bool_]
) -> tuple[ClassScores, ...]:
    """Return the classification report: one line a label that is true or predicted anywhere."""
    hits, false_alarms, misses = (
        part.sum(axis=0, dtype=np.float64) for part in _outcomes(is_true, is_predicted)
    )
    scores = from_counts(hits, false_alarms, misses)
    return tuple(
        ClassScores(label, float(precision), float(recall), float(f1), int(rows))
        for label, precision, recall, f1, rows in zip(labels, *scores, hits + misses, strict=True)
        if not np.isnan(f1)
    )


def _counted(
    is_true: NDArray[np.bool_], is_predicted: NDArray[np.bool_], one_label: bool
) -> Scorer:
    """Return what follows from how often each class was hit, predicted wrongly and missed.

    Macro, micro and weighted means of precision, recall and F1, to which a class that is absent
    from the rows does not count; with one label a row, Matthews' correlation too.
    """
    outcomes = np.concatenate(_outcomes(is_true, is_predicted), axis=1).astype(np.float64)

    def score(draws: Draws) -> dict[str, Floats]:
        hits, false_alarms, misses = np.split(sums(draws, outcomes), 3, axis=1)
        of_class = from_counts(hits, false_alarms, misses)
        of_all = from_counts(hits.sum(axis=1), false_alarms.sum(axis=1), misses.sum(axis=1))
        is_there = hits + false_alarms + misses > 0
        found = {}
        for name, each, overall in zip(of_class._fields, of_class, of_all, strict=True):
            found[f"{name}_macro"] = _mean(each, is_there.astype(np.float64))
            found[f"{name}_micro"] = overall
            found[f"{name}_weighted"] = _mean(each, hits + misses)
        if one_label:
            found["mcc"] = _matthews(hits.sum(axis=1), hits + misses, hits + false_alarms)
        return found

    return Scorer(score)


def _mean(of_class: Floats, weights: Floats) -> Floats:
    """Return means over classes [drawings], both arguments being [drawings, classes].

    Without weight it is 0 where something was predicted, as in scikit-learn, and else NaN.
    """
    totals = weights.sum(axis=1)
    sum_of_all = (np.nan_to_num(of_class) * weights).sum(axis=1)
    without = np.where(np.isnan(of_class).all(axis=1), np.nan, 0.0)
    return np.where(totals > 0, sum_of_all / np.maximum(totals, 1), without)


def _matthews(right: Floats, true: Floats, predicted: Floats) -> Floats:
    """Return Matthews' correlation of any number of classes [drawings], from one label a row.

    scikit-learn takes one sample of rows a call, milliseconds each; this is the formula of its
    user guide (Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006) on the counts of
    all samples at once. With one class alone there is nothing to be correlated: NaN.

    Args:
        right: [drawings], rows whose label was predicted.
        true: [drawings, classes], rows of a label.
        predicted: [drawings, classes], rows that were taken for it.
    """
    rows = true.sum(axis=1)
    by_chance = (true * predicted).sum(axis=1)
    spreads = (rows**2 - (true**2).sum(axis=1)) * (rows**2 - (predicted**2).sum(axis=1))
    shared = right * rows - by_chance
    found = np.where(spreads > 0, shared / np.sqrt(np.maximum(spreads, 1)), 0.0)
    return np.where(by_chance == rows**2, np.nan, found)


def _ranking(is_true: NDArray[np.bool_], scores: Floats) -> Scorer:
    """Return the area under the ROC curve, one class against the rest, mean over classes.

    It is how often a row of the class ranks above one of the rest, ties counting half (Hanley and
    McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747): from ranks, of which SciPy finds
    those of many samples in one call, where scikit-learn takes a call for each.
    """
    num_classes = is_true.shape[1]

    def score(draws: Draws) -> dict[str, Floats]:
        if not np.isfinite(scores).all():
            return {"roc_auc": np.full(len(draws), np.nan)}
        areas = np.stack([area(draws, k) for k in range(num_classes)])
        is_ranked = ~np.isnan(areas)  # It takes rows in and out of a class.
        totals, numbers = np.where(is_ranked, areas, 0).sum(axis=0), is_ranked.sum(axis=0)
        return {"roc_auc": np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan)}

    def area(draws: Draws, of_class: int) -> Floats:
        is_in = is_true[draws, of_class]
        inside = is_in.sum(axis=1, dtype=np.float64)
        outside = draws.shape[1] - inside
        sum_of_ranks = (rankdata(scores[draws, of_class], axis=1) * is_in).sum(axis=1)
        above = sum_of_ranks - inside * (inside + 1) / 2
        return np.where(inside * outside > 0, above / np.maximum(inside * outside, 1), np.nan)

    # A sample costs as much as it has classes: of many classes there is time for too few of them.
    if num_classes > _MAX_CLASSES_FOR_INTERVAL:
        return Scorer(score, resamples=1)
    return Scorer(score, NUM_RESAMPLES // num_classes)


def _outcomes(
    is_true: NDArray[np.bool_], is_predicted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    return is_true & is_predicted, ~is_true & is_predicted, is_true & ~is_predicted


def _one_hot(ids: NDArray[np.int64], num_classes: int) -> NDArray[np.bool_]:
    hot: NDArray[np.bool_] = ids[:, None] == np.arange(num_classes)
    return hot
