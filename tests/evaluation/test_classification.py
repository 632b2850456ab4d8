from math import isnan

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from worker.evaluation import classification
from worker.evaluation.measure import evaluate, resample, values

LABELS = ("a", "b", "c", "d")
AVERAGES = ("macro", "micro", "weighted")


def predictions(rows: int, classes: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray]:
    generator = np.random.default_rng(seed)
    truths = generator.integers(0, classes, rows)
    scores = generator.random((rows, classes)) + 0.7 * np.eye(classes)[truths]
    return truths, scores / scores.sum(axis=1, keepdims=True)


def of_scikit_learn(truths: NDArray, scores: NDArray) -> dict[str, float]:
    predicted = scores.argmax(axis=1)
    found = {
        "accuracy": metrics.accuracy_score(truths, predicted),
        "mcc": metrics.matthews_corrcoef(truths, predicted),
    }
    for average in AVERAGES:
        scored = metrics.precision_recall_fscore_support(
            truths, predicted, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), scored, strict=False):
            found[f"{name}_{average}"] = value
    return found


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_every_number_is_that_of_scikit_learn(classes: int) -> None:
    truths, scores = predictions(200, classes)
    found = values(classification.score_single_label(LABELS[:classes], truths, scores))
    expected = of_scikit_learn(truths, scores)
    expected["loss"] = metrics.log_loss(truths, scores)
    expected["roc_auc"] = (
        metrics.roc_auc_score(truths, scores[:, 1])
        if classes == 2
        else metrics.roc_auc_score(truths, scores, multi_class="ovr")
    )
    assert found == pytest.approx(expected)


def test_every_bootstrap_sample_is_computed_as_scikit_learn_would() -> None:
    truths, scores = predictions(12, 4, seed=3)  # Few rows: classes are absent from many samples.
    found = resample(classification.score_single_label(LABELS, truths, scores), seed=9)
    draws = np.random.default_rng(9).integers(0, 12, (1_000, 12))
    assert min(len(np.unique(truths[drawn])) for drawn in draws) < 4
    for sample in range(0, 200, 10):
        drawn = draws[sample]
        expected = of_scikit_learn(truths[drawn], scores[drawn])
        assert {name: found[name][sample] for name in expected} == pytest.approx(expected)


def test_areas_and_correlations_of_samples_are_those_of_scikit_learn() -> None:
    truths, scores = predictions(12, 3, seed=5)
    # Ties, and a class that is never predicted.
    scores = np.round(scores, 1) * [1.0, 1.0, 0.1]
    scored = classification.score_single_label(LABELS[:3], truths, scores)
    found = resample(scored, seed=2)
    draws = np.random.default_rng(2).integers(0, 12, (1_000, 12))
    areas_seen = set()
    assert len(found["roc_auc"]) == 333  # Three classes take three times as long as one.
    for sample, area in enumerate(found["roc_auc"]):
        true, of_class = truths[draws[sample]], scores[draws[sample]]
        expected = [
            metrics.roc_auc_score(true == k, of_class[:, k])
            for k in range(3)
            if 0 < (true == k).sum() < 12
        ]
        assert area == pytest.approx(np.mean(expected))
        areas_seen.add(len(expected))
    assert areas_seen == {2, 3}
    for drawn, correlation in zip(draws[:200], found["mcc"], strict=False):
        true, predicted = truths[drawn], scores[drawn].argmax(axis=1)
        assert correlation == pytest.approx(metrics.matthews_corrcoef(true, predicted))
    # What never changes is correlated with nothing.
    constant = values(classification.score_single_label(LABELS[:2], [0, 1, 1], np.eye(2)[[0] * 3]))
    assert constant["mcc"] == 0.0


def test_the_report_is_the_one_of_scikit_learns_user_guide() -> None:
    # The example of `classification_report`: class 1 is never found, class 2 twice of three times.
    truths, predicted = [0, 1, 2, 2, 2], [0, 0, 2, 2, 1]
    names = ("class 0", "class 1", "class 2")
    scored = classification.score_single_label(names, truths, np.eye(3)[predicted])
    rows = [
        (one.label, round(one.precision, 2), round(one.recall, 2), round(one.f1, 2), one.rows)
        for one in scored.per_class
    ]
    assert rows == [
        ("class 0", 0.5, 1.0, 0.67, 1),
        ("class 1", 0.0, 0.0, 0.0, 1),
        ("class 2", 1.0, 0.67, 0.8, 3),
    ]
    found = values(scored)
    assert found["accuracy"] == pytest.approx(0.6)
    assert round(found["f1_macro"], 2) == 0.49
    assert round(found["f1_weighted"], 2) == 0.61


def test_the_confusion_matrix_holds_every_class_of_the_model() -> None:
    scored = classification.score_single_label(LABELS, [0, 0, 1], np.eye(4)[[0, 1, 1]])
    assert scored.confusion is not None
    assert scored.confusion.labels == LABELS
    assert scored.confusion.counts == ((1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))


def test_a_class_that_is_neither_true_nor_predicted_changes_no_mean() -> None:
    truths, scores = [0, 1, 1, 0], np.eye(4)[[0, 1, 0, 0]]
    scored = classification.score_single_label(LABELS, truths, scores)
    assert [one.label for one in scored.per_class] == ["a", "b"]
    without = classification.score_single_label(LABELS[:2], truths, scores[:, :2])
    for average in AVERAGES:
        assert values(scored)[f"f1_{average}"] == values(without)[f"f1_{average}"]


def test_one_row_is_measured_as_far_as_one_row_can_be() -> None:
    evaluation = evaluate(classification.score_single_label(("no", "yes"), [1], [[0.2, 0.8]]))
    assert evaluation.value("accuracy") == 1.0
    assert evaluation.value("f1_macro") == 1.0
    assert evaluation.value("loss") == pytest.approx(-np.log(0.8))
    assert evaluation.value("roc_auc") is None
    assert evaluation.value("mcc") is None
    assert all(one.low is None and one.high is None for one in evaluation.metrics)


def test_a_probability_of_zero_costs_much_but_not_infinitely_much() -> None:
    found = values(classification.score_single_label(("no", "yes"), [1, 0], [[1, 0], [1, 0]]))
    assert 40 < found["loss"] < 50


def test_a_diverged_model_has_no_loss_and_no_area() -> None:
    scores = np.full((20, 2), np.nan)
    evaluation = evaluate(classification.score_single_label(("no", "yes"), [0, 1] * 10, scores))
    assert evaluation.value("loss") is None
    assert evaluation.value("roc_auc") is None
    assert evaluation.value("accuracy") == 0.5
    scores[:] = 0.5
    scores[3, 1] = np.nan
    # No sample has an area then, not even one without that row.
    scored = classification.score_single_label(("no", "yes"), [0, 1] * 10, scores)
    assert np.isnan(resample(scored)["roc_auc"]).all()


def test_intervals_hold_the_value_for_every_metric() -> None:
    truths, scores = predictions(150, 3)
    for one in evaluate(classification.score_single_label(LABELS[:3], truths, scores)).metrics:
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_the_area_of_many_classes_has_a_value_without_interval() -> None:
    truths, scores = predictions(60, 26)
    evaluation = evaluate(classification.score_single_label([*map(str, range(26))], truths, scores))
    (area,) = [one for one in evaluation.metrics if one.name == "roc_auc"]
    assert area.value is not None
    assert area.low is area.high is None


def test_several_labels_a_row_are_measured_as_scikit_learn_does() -> None:
    generator = np.random.default_rng(1)
    truths = generator.random((80, 3)) < 0.4
    scores = np.clip(0.6 * generator.random((80, 3)) + 0.4 * truths, 0.01, 0.99)
    predicted = scores >= 0.5
    found = values(classification.score_multi_label(LABELS[:3], truths, scores))
    for average in AVERAGES:
        expected = metrics.precision_recall_fscore_support(
            truths, predicted, average=average, zero_division=0
        )
        got = [found[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(expected[:3])
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truths, predicted))
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(truths, scores))
    columns = [metrics.log_loss(truths[:, k], scores[:, k]) for k in range(3)]
    assert found["loss"] == pytest.approx(np.mean(columns))


def test_rows_without_any_label_are_right_when_none_is_predicted() -> None:
    truths = np.zeros((3, 2), np.bool_)
    found = values(classification.score_multi_label(LABELS[:2], truths, np.full((3, 2), 0.1)))
    assert found["accuracy"] == 1.0
    assert isnan(found["f1_micro"])
    assert isnan(found["f1_weighted"])
    assert isnan(found["roc_auc"])
    wrong = values(classification.score_multi_label(LABELS[:2], truths, np.full((3, 2), 0.9)))
    assert wrong["precision_weighted"] == 0.0
    assert wrong["precision_micro"] == 0.0


def test_the_threshold_decides_what_is_predicted() -> None:
    truths, scores = np.ones((4, 1), np.bool_), np.full((4, 1), 0.4)
    low = classification.score_multi_label(("a",), truths, scores, threshold=0.3)
    assert values(low)["accuracy"] == 1.0
    assert values(classification.score_multi_label(("a",), truths, scores))["accuracy"] == 0.0
