"""Labels of texts and of pairs: one, several or a number; the loss; the pipeline's answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextClassificationPipeline

from app.domain.errors import InvalidInput, TrainingFailed
from app.storage.local import LocalStorage
from tests.support.datasets import faq_categories, movie_reviews
from tests.tasks.conftest import (
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    numbered,
    predicted,
    task_spec,
    validations,
)
from worker.evaluation.measure import values
from worker.tasks.text_classification import TextClassification

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "text-classification"
SINGLE: list[dict[str, Any]] = [
    {"text": "A wonderful film.", "label": "good"},
    {"text": "Dull and far too long.", "label": "bad"},
    {"text": "It was on.", "label": "neither"},
]
MULTIPLE: list[dict[str, Any]] = [
    {"text": "Funny and sad.", "labels": ["funny", "sad"]},
    {"text": "Neither of them, at length.", "labels": []},
]
NUMBERS: list[dict[str, Any]] = [
    {"text": "Cheap.", "label": 1.5},
    {"text": "Expensive, but good.", "label": 30.0},
]
PAIRS: list[dict[str, Any]] = [
    {"text": "A man sleeps.", "text_pair": "Someone rests.", "label": True},
    {"text": "A man sleeps.", "text_pair": "Everyone is running.", "label": False},
]
KINDS = {"single": SINGLE, "multiple": MULTIPLE, "numbers": NUMBERS, "pairs": PAIRS}


@pytest.fixture(scope="module")
def classifiers(minilm: Path) -> dict[str, Any]:
    return {name: make_task(TASK, minilm, records) for name, records in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_outline_says_what_kind_of_labels_there_are() -> None:
    survey = TextClassification.survey

    assert survey(numbered(SINGLE)) == {
        "problem": "single_label",
        "labels": ["bad", "good", "neither"],
    }
    assert survey(numbered(MULTIPLE)) == {"problem": "multi_label", "labels": ["funny", "sad"]}
    assert survey(numbered(NUMBERS)) == {"problem": "regression", "labels": []}
    assert survey(numbered(PAIRS))["labels"] == ["false", "true"]
    stars = [{"text": "x", "label": label} for label in (10, 9, 1)]
    assert survey(numbered(stars))["labels"] == ["1", "9", "10"]


def test_a_pair_is_two_segments(classifiers: dict[str, Any]) -> None:
    task = classifiers["pairs"]

    batch = task.collate(encoded(task, PAIRS[:1]))

    tokens = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    second = [
        token
        for token, segment in zip(tokens, batch["token_type_ids"][0].tolist(), strict=True)
        if segment == 1
    ]
    assert second == ["someone", "rests", ".", "[SEP]"]


def test_a_long_text_is_cut_and_counted(classifiers: dict[str, Any]) -> None:
    task = classifiers["single"]
    words = {"text": "word " * 40, "label": "good"}

    cut, whole = encoded(task, [words], longest=41)[0], encoded(task, [words], longest=42)[0]

    assert (cut.is_truncated, cut.cost) == (True, 41)
    assert (whole.is_truncated, whole.cost) == (False, 42)
    # Whatever was asked for, no more than the model takes.
    (beyond,) = encoded(task, [{"text": "word " * 600, "label": "good"}], longest=1024)
    assert (beyond.is_truncated, beyond.cost) == (True, 512)


def test_the_loss_is_that_of_transformers(classifiers: dict[str, Any], kind: str) -> None:
    task = classifiers[kind]
    batch = task.collate(encoded(task, KINDS[kind]))

    found = loss_of(task, batch)

    labels = batch["labels"]
    expected = task.model(**{**batch, "labels": labels}).loss.detach()
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)


def test_what_else_is_in_a_batch_changes_no_loss(classifiers: dict[str, Any], kind: str) -> None:
    task = classifiers[kind]
    examples = encoded(task, KINDS[kind])

    together = loss_of(task, task.collate(examples)).sums
    apart = [float(loss_of(task, task.collate([one])).sums[0]) for one in examples]

    assert together.tolist() == pytest.approx(apart, rel=1e-4)


def test_classes_are_weighted_and_smoothed_as_torch_does(classifiers: dict[str, Any]) -> None:
    task = classifiers["single"]
    batch = task.collate(encoded(task, SINGLE))
    weights = torch.tensor([1.0, 3.0, 0.5])
    logits = task.model(batch["input_ids"], batch["attention_mask"]).logits.detach()

    weighted = loss_of(task, batch, class_weights=weights)
    smoothed = loss_of(task, batch, label_smoothing=0.2)

    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, batch["labels"])
    assert float(weighted.sums.sum() / weighted.weights.sum()) == pytest.approx(float(expected))
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(logits, batch["labels"])
    assert float(smoothed.sums.mean()) == pytest.approx(float(expected))


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_answers_are_those_of_the_pipeline(
    classifiers: dict[str, Any], kind: str, top_k: int | None
) -> None:
    task = classifiers[kind]
    make: Any = TextClassificationPipeline
    function = {"multiple": "sigmoid", "numbers": "none"}.get(kind, "softmax")
    reference = make(
        model=task.model, tokenizer=task.tokenizer, device=-1, function_to_apply=function
    )
    record = KINDS[kind][0]
    value = {name: record[name] for name in ("text", "text_pair") if name in record}

    expected = reference(value, top_k=top_k)

    found = answered(task, value, top_k=top_k)
    rows = expected if isinstance(expected, list) else [expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in rows])
    if kind != "numbers":
        assert [one["label"] for one in found] == [one["label"] for one in rows]


def test_scores_each_kind(classifiers: dict[str, Any]) -> None:
    def scored(kind: str, predictions: list[Any]) -> dict[str, float]:
        task = classifiers[kind]
        return values(task.score(judged(encoded(task, KINDS[kind]), predictions)))

    one_wrong = [[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.6, 0.2, 0.2]]
    assert scored("single", one_wrong)["accuracy"] == pytest.approx(2 / 3)
    assert scored("multiple", [[0.9, 0.2], [0.1, 0.3]])["recall_micro"] == 0.5
    assert scored("numbers", [2.5, 28.0])["mae"] == pytest.approx(1.5)


def test_names_the_worst_rows(classifiers: dict[str, Any]) -> None:
    task = classifiers["single"]
    examples = encoded(task, SINGLE)

    worst = task.worst(judged(examples, [[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.6, 0.2, 0.2]]))

    assert (worst[0].expected, worst[0].predicted) == ("neither", "bad")
    assert worst[0].confidence == 0.6
    assert worst[0].excerpt == "It was on."


def test_learns_to_tell_categories(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    records = faq_categories(86, categories=3)
    spec = task_spec(storage, TASK, records[:60], records[60:], batch_size=4)

    attempt = run_task(spec, minilm)

    before, after = validations(attempt, "accuracy")
    assert after > before + 0.2


@pytest.mark.slow
def test_learns_sentiment(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    records = movie_reviews(4000)
    spec = task_spec(
        storage, TASK, records[:3000], records[3000:], batch_size=16, max_length_tokens=64
    )

    attempt = run_task(spec, minilm)

    assert validations(attempt, "accuracy")[-1] >= 0.74


def test_refuses_one_class() -> None:
    with pytest.raises(InvalidInput, match="at least two"):
        TextClassification.survey(numbered(SINGLE[:1]))


def test_a_held_out_label_must_be_known(
    run_task: RunTask, storage: LocalStorage, minilm: Path
) -> None:
    unknown = [SINGLE[0], {"text": "What?", "label": "odd"}]

    with pytest.raises(TrainingFailed, match="line 2: label 'odd' is not among") as error:
        run_task(task_spec(storage, TASK, SINGLE, unknown), minilm)

    assert error.value.param == "validation_file"


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (3, "inputs"),
        ({"text_pair": "x"}, "inputs"),
        ({"text": "x", "label": "y"}, "inputs"),
        (" ", "inputs"),
        ({"text": ""}, "inputs.text"),
        ({"text": "x", "text_pair": ""}, "inputs.text_pair"),
    ],
)
def test_refuses_a_wrong_input(classifiers: dict[str, Any], value: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as error:
        classifiers["single"].encode_input(value)
    assert error.value.param == param


@pytest.mark.parametrize(
    "parameters", [{"top_k": "all"}, {"top_k": 0}, {"top_k": -1}, {"function_to_apply": "none"}]
)
def test_refuses_a_wrong_parameter(classifiers: dict[str, Any], parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        answered(classifiers["single"], "x", **parameters)
    assert str(error.value.param).startswith("parameters")


def test_predictions_are_of_each_row(classifiers: dict[str, Any], kind: str) -> None:
    task = classifiers[kind]
    examples = encoded(task, KINDS[kind])

    together = predicted(task, examples)

    apart = [predicted(task, [one])[0] for one in examples]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(apart), rtol=1e-4, atol=1e-5)
