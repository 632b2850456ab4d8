"""Entities: words and their tags, windows, the loss, answers as the pipeline gives them."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TokenClassificationPipeline

from app.domain.errors import InvalidInput, TrainingFailed
from app.storage.local import LocalStorage
from tests.support.datasets import twitter_ner
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
from tests.tasks.quantities import quantity_spans
from worker.evaluation.measure import values
from worker.tasks import LossOptions
from worker.tasks.token_classification import IGNORED, TokenClassification

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "token-classification"
ALICE: dict[str, Any] = {
    "tokens": ["Alice", "Smith", "visits", "Hamburg-Altona", "unhappily"],
    "tags": ["B-person", "I-person", "O", "B-place", "O"],
}
TEXT = "Unhappily, Alice Smith visits the Straßenbahn museum of Hamburg-Altona with Bob."


@pytest.fixture(scope="module")
def tagger(minilm: Path) -> Any:
    return make_task(TASK, minilm, [ALICE])


def tokens_and_labels(task: Any, record: dict[str, Any], longest: int = 128) -> list[list[Any]]:
    batch = task.collate(encoded(task, [record], longest))
    return [
        [
            (token, None if label == IGNORED else task.labels[label])
            for token, label in zip(
                task.tokenizer.convert_ids_to_tokens(ids.tolist()), labels.tolist(), strict=True
            )
        ]
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def test_the_first_token_of_a_word_has_its_tag(tagger: Any) -> None:
    assert tokens_and_labels(tagger, ALICE) == [
        [
            ("[CLS]", None),
            ("alice", "B-person"),
            ("smith", "I-person"),
            ("visits", "O"),
            ("hamburg", "B-place"),
            ("-", None),
            ("alton", None),
            ("##a", None),
            ("un", "O"),
            ("##ha", None),
            ("##pp", None),
            ("##ily", None),
            ("[SEP]", None),
        ]
    ]


def test_spans_become_tags_of_the_words_they_touch(tagger: Any) -> None:
    text = "Mr. Alice-Smith, unhappily"
    record = {
        "text": text,
        "entities": [
            # From within a word to the end of another one.
            {"start": text.index("ice"), "end": text.index(","), "label": "person"},
            {"start": text.index("happ"), "end": text.index("ily"), "label": "place"},
        ],
    }

    assert tokens_and_labels(tagger, record) == [
        [
            ("[CLS]", None),
            ("mr", "O"),
            (".", "O"),
            ("alice", "B-person"),
            ("-", "I-person"),
            ("smith", "I-person"),
            (",", "O"),
            ("un", "B-place"),
            ("##ha", None),
            ("##pp", None),
            ("##ily", None),
            ("[SEP]", None),
        ]
    ]


def test_a_long_text_loses_nothing(tagger: Any) -> None:
    """Each word is learnt once, in whatever window, and predicted once."""
    record = {
        "tokens": [f"word{number}" for number in range(60)],
        "tags": ["B-person", "O", "B-place"] * 20,
    }
    rows = tokens_and_labels(tagger, record, longest=24)
    learnt = [label for row in rows for _, label in row if label is not None]
    (example,) = encoded(tagger, [record], longest=24)

    assert len(rows) > 5
    assert max(map(len, rows)) == 24
    assert learnt == record["tags"]
    assert not example.is_truncated
    num_tokens = len(
        tagger.tokenizer(" ".join(record["tokens"]), add_special_tokens=False).input_ids
    )
    assert predicted(tagger, [example])[0].shape == (num_tokens, len(tagger.labels))


def test_a_token_is_seen_with_context_on_both_sides(tagger: Any) -> None:
    """Windows overlap by a quarter; a token near a bound is taken from the other window."""
    text = " ".join(["word"] * 100)
    windows = tagger._windows(text, 42)

    assert [window.own for window in windows] == [range(1, 36), range(6, 36), range(6, 41)]


def test_the_loss_is_that_of_transformers(tagger: Any) -> None:
    other = {"tokens": ["Bob", "sleeps"], "tags": ["B-person", "O"]}
    batch = tagger.collate(encoded(tagger, [ALICE, other]))

    found = loss_of(tagger, batch)

    expected = tagger.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
        labels=batch["labels"],
    ).loss.detach()
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)
    assert found.weights.tolist() == [5.0, 2.0]


def test_classes_are_weighted_as_torch_does(tagger: Any) -> None:
    batch = tagger.collate(encoded(tagger, [ALICE]))
    weights = torch.tensor([0.25, 1.0, 2.0, 3.0, 1.0])

    found = loss_of(tagger, batch, class_weights=weights)

    logits = tagger.model(batch["input_ids"]).logits.detach()
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits[0], batch["labels"][0])
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_words_outside_entities_weigh_less_in_training_alone(minilm: Path) -> None:
    """Of nine words in ten outside, the weight is a third."""
    record = {"tokens": ["a"] * 10, "tags": ["B-thing"] + ["O"] * 9}
    task = make_task(TASK, minilm, [record])
    batch = task.collate(encoded(task, [record]))

    assert task.outside_weight == pytest.approx(1 / 3)
    assert task.loss(task.model, batch, LossOptions()).weights.tolist() == [10.0]
    task.model.train()
    assert task.loss(task.model, batch, LossOptions()).weights.tolist() == pytest.approx([4.0])


def test_the_outline_has_all_labels_in_order() -> None:
    spans = {"text": "a b c d", "entities": [{"start": 2, "end": 5, "label": "x"}]}

    assert TokenClassification.survey(numbered([ALICE]))["labels"] == [
        "O", "B-person", "I-person", "B-place", "I-place"
    ]  # fmt: skip
    assert TokenClassification.survey(numbered([spans])) == {
        "labels": ["O", "B-x", "I-x"],
        "outside_weight": 1.0,
    }


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_answers_are_those_of_the_pipeline(tagger: Any, strategy: str) -> None:
    pipeline: Any = TokenClassificationPipeline
    reference = pipeline(
        model=tagger.model, tokenizer=tagger.tokenizer, aggregation_strategy=strategy, device=-1
    )

    expected = reference(TEXT)

    assert len(expected) > 3
    found = answered(tagger, TEXT, aggregation_strategy=strategy)
    assert [one.keys() for one in found] == [one.keys() for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.pop("score") == pytest.approx(float(other.pop("score")), abs=1e-6)
        assert type(one["start"]) is int
        assert one == other
    if strategy == "simple":
        plain = [(one["start"], one["end"]) for one in answered(tagger, TEXT)]
        assert plain == [(one["start"], one["end"]) for one in found]


def test_entities_are_found_beyond_the_first_window(tagger: Any) -> None:
    text = " ".join(["nothing"] * 600) + " Alice"

    found = answered(tagger, text, aggregation_strategy="none")

    assert {text[one["start"] : one["end"]] for one in found} <= {"nothing", "Alice"}
    (example,) = [tagger.encode_input(text)]
    assert len(example.features["windows"]) == 2
    # The model is a fresh one, which has an opinion on every word: the last one is among them.
    logits = predicted(tagger, [example])[0]
    assert len(logits) == 601


def test_scores_whole_entities(tagger: Any) -> None:
    """A word without any token counts as outside: it is not left out of the measure."""
    unseen = {"tokens": ["Bob", "\u200b"], "tags": ["O", "B-person"]}
    examples = encoded(tagger, [ALICE, unseen])
    right, wrong = torch.zeros(11, 5), torch.zeros(1, 5)
    for token, tag in ((0, 1), (1, 2), (2, 0), (3, 3), (4, 4), (5, 4), (6, 4), (7, 0)):
        right[token, tag] = 9.0
    wrong[0, 0] = 9.0

    found = values(tagger.score(judged(examples, [right, wrong])))

    assert found["entity_precision"] == 1.0
    assert found["entity_recall"] == pytest.approx(2 / 3)
    worst = tagger.worst(judged(examples, [right, wrong]))
    assert [(one.expected, one.predicted) for one in worst] == [
        ("person: \u200b", "none"),
        (
            "person: Alice Smith; place: Hamburg-Altona",
            "person: Alice Smith; place: Hamburg-Altona",
        ),
    ]


def test_learns_from_little(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    records = quantity_spans(100)
    spec = task_spec(storage, TASK, records[:70], records[70:], learning_rate=3e-3, batch_size=4)

    attempt = run_task(spec, minilm)

    before, after = validations(attempt, "entity_f1")
    assert before < 0.2
    assert after > 0.5


@pytest.mark.slow
def test_finds_entities_in_tweets(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    """Ten types; without a weight on `O`, F1 stays at 0 for the first epochs."""
    records = twitter_ner()
    learnt = [one for one in records[500:] if _is_kept(one)][:1013]
    spec = task_spec(
        storage, TASK, learnt, records[:500], num_epochs=2, batch_size=16, max_length_tokens=64
    )

    attempt = run_task(spec, minilm)

    assert validations(attempt, "entity_f1")[-1] >= 0.33


@pytest.mark.parametrize("value", [{"text": "x"}, "", "\t"])
def test_refuses_what_is_no_text(tagger: Any, value: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        tagger.encode_input(value)
    assert error.value.param == "inputs"


@pytest.mark.parametrize("parameters", [{"aggregation_strategy": "best"}, {"stride": 3}])
def test_refuses_a_wrong_parameter(tagger: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        answered(tagger, "Alice", **parameters)
    assert str(error.value.param).startswith("parameters")


def test_refuses_an_unknown_label(tagger: Any) -> None:
    with pytest.raises(InvalidInput, match="'animal' is not among those trained on: person, place"):
        encoded(tagger, [{"tokens": ["Rex"], "tags": ["B-animal"]}])


def test_refuses_a_file_without_entities() -> None:
    with pytest.raises(InvalidInput, match="no record has an entity"):
        TokenClassification.survey(numbered([{"tokens": ["a"], "tags": ["O"]}]))


def test_a_record_without_any_token_is_left_out(
    run_task: RunTask, storage: LocalStorage, minilm: Path
) -> None:
    empty = {"tokens": ["\u200b"], "tags": ["B-person"]}

    attempt = run_task(task_spec(storage, TASK, [ALICE, empty]), minilm)

    prepared = attempt.of_type("prepared")[0]
    assert (prepared["records"], prepared["untrainable_lines"]) == (1, [2])
    with pytest.raises(TrainingFailed, match="no record has anything"):
        run_task(task_spec(storage, TASK, [empty]), minilm)


def _is_kept(record: dict[str, Any], chosen: random.Random = random.Random(0)) -> bool:  # noqa: B008
    return any(tag != "O" for tag in record["tags"]) or chosen.random() < 0.25
