"""Extractive answers: places in windows, the loss, the best span of all windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.errors import InvalidInput
from app.storage.local import LocalStorage
from tests.tasks.conftest import (
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    numbered,
    task_spec,
    validations,
)
from tests.tasks.quantities import quantity_answers
from worker.evaluation.measure import values
from worker.tasks.question_answering import QuestionAnswering

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "question-answering"
CONTEXT = "Alice Smith lives in Hamburg-Altona. Bob lives unhappily in Lyon, where it rains."


def record_of(answer: str | None, context: str = CONTEXT, question: str = "Where?") -> Any:
    texts = [] if answer is None else [answer]
    starts = [context.index(text) for text in texts]
    return {
        "question": question,
        "context": context,
        "answers": {"text": texts, "answer_start": starts},
    }


@pytest.fixture(scope="module")
def answerer(minilm: Path) -> Any:
    return make_task(TASK, minilm, [record_of("Lyon")])


def learnt_parts(task: Any, record: Any, longest: int) -> list[str]:
    """Return the tokens that each window learns as the answer."""
    batch = task.collate(encoded(task, [record], longest))
    return [
        " ".join(task.tokenizer.convert_ids_to_tokens(ids[start : end + 1].tolist()))
        for ids, (start, end) in zip(batch["input_ids"], batch["places"].tolist(), strict=True)
    ]


def test_the_answer_is_learnt_where_it_stands(answerer: Any) -> None:
    assert learnt_parts(answerer, record_of("Hamburg-Altona"), 128) == ["hamburg - alton ##a"]
    # A token that an answer begins or ends in belongs to it.
    assert learnt_parts(answerer, record_of("ice Smi"), 128) == ["alice smith"]
    assert learnt_parts(answerer, record_of(None), 128) == ["[CLS]"]


def test_windows_without_the_answer_learn_that_they_have_none(answerer: Any) -> None:
    """Lyon stands in the two last windows of a text whose windows overlap."""
    record = record_of("Lyon")

    parts = learnt_parts(answerer, record, 16)

    assert parts == ["[CLS]", "lyon", "lyon"]
    (example,) = encoded(answerer, [record], 16)
    assert not example.is_truncated
    assert example.cost == 3 * 16


def test_an_answer_longer_than_any_window_is_cut_and_counted(answerer: Any) -> None:
    record = record_of(CONTEXT)

    parts = learnt_parts(answerer, record, 16)

    assert parts[0].startswith("alice smith lives")
    assert parts[1:] == ["[CLS]"] * 2
    (example,) = encoded(answerer, [record], 16)
    assert example.is_truncated


def test_a_long_question_is_cut_in_a_record_and_refused_in_a_request(answerer: Any) -> None:
    question = "where " * 300

    (example,) = encoded(answerer, [record_of("Lyon", question=question)], 64)

    assert example.is_truncated
    window = example.features["windows"][0]
    assert window.inputs["input_ids"].count(answerer.tokenizer.vocab["where"]) == 32 + 1
    with pytest.raises(InvalidInput) as error:
        answerer.encode_input({"question": question, "context": CONTEXT})
    assert error.value.param == "inputs.question"


def test_the_loss_is_that_of_transformers(answerer: Any) -> None:
    """On windows of one length: padding is no place that could be chosen, unlike there."""
    batch = answerer.collate(encoded(answerer, [record_of("Lyon"), record_of("Alice Smith")]))

    found = loss_of(answerer, batch)

    expected = answerer.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
        start_positions=batch["places"][:, 0],
        end_positions=batch["places"][:, 1],
    ).loss.detach()
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)


def test_what_else_is_in_a_batch_changes_no_loss(answerer: Any) -> None:
    long = record_of("Lyon")
    short = record_of("Bob", context="Bob sleeps.")
    together = loss_of(answerer, answerer.collate(encoded(answerer, [long, short])))
    apart = loss_of(answerer, answerer.collate(encoded(answerer, [short])))

    assert float(together.sums[1]) == pytest.approx(float(apart.sums[0]), rel=1e-5)
    # Label smoothing spreads over the tokens alone as well.
    together = loss_of(
        answerer, answerer.collate(encoded(answerer, [long, short])), label_smoothing=0.1
    )
    apart = loss_of(answerer, answerer.collate(encoded(answerer, [short])), label_smoothing=0.1)
    assert float(together.sums[1]) == pytest.approx(float(apart.sums[0]), rel=1e-5)
    assert 0 < float(apart.sums[0]) < 20


@pytest.mark.parametrize("may_be_none", [False, True])
@pytest.mark.parametrize("max_answer_len", [1, 4])
def test_answers_are_those_of_the_pipeline(
    answerer: Any, may_be_none: bool, max_answer_len: int
) -> None:
    """Transformers 5 has no such pipeline any more: its definition is written out here."""
    question = "Where does Bob live?"
    expected = pipeline_answers(answerer, question, CONTEXT, may_be_none, max_answer_len)[:4]

    found = answered(
        answerer,
        {"question": question, "context": CONTEXT},
        top_k=4,
        max_answer_len=max_answer_len,
        handle_impossible_answer=may_be_none,
    )

    assert [(one["start"], one["end"]) for one in found] == [span for span, _ in expected]
    assert [one["score"] for one in found] == pytest.approx([score for _, score in expected])
    for one in found:
        assert one["answer"] == CONTEXT[one["start"] : one["end"]]
    everything = pipeline_answers(answerer, question, CONTEXT, may_be_none, max_answer_len)
    assert ((0, 0) in dict(everything)) == may_be_none


def test_one_answer_is_no_list(answerer: Any) -> None:
    found = answered(answerer, {"question": "Who?", "context": CONTEXT})

    assert found.keys() == {"score", "start", "end", "answer"}


def test_the_surest_window_has_the_answer(answerer: Any) -> None:
    """A window without the answer would be sure of something if it were asked alone."""
    record = record_of("Lyon")
    (example,) = encoded(answerer, [record], 16)
    windows = example.features["windows"]
    logits = torch.full((3, 2, 16), -5.0)
    for row, window in enumerate(windows):
        logits[row, :, 0] = 3.0
        logits[row, :, window.text[0]] = 0.0
    place = example.target.places[1]
    logits[1, 0, place[0]] = logits[1, 1, place[1]] = 8.0
    logits[1, :, 0] = 1.0

    asked = answerer.answer(example, logits, {"handle_impossible_answer": True})

    assert asked["answer"] == "Lyon"
    # 8 against 1, the null of the window that is least sure of it, and three zeros.
    share = np.exp(8) / (np.exp(8) + np.exp(1) + 3)
    assert asked["score"] == pytest.approx(share**2, rel=1e-2)
    logits[:, :, 0] = 12.0
    none = answerer.answer(example, logits, {"handle_impossible_answer": True})
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert answerer.answer(example, logits, {"handle_impossible_answer": False})["answer"] == "Lyon"


def test_an_answer_may_be_as_long_as_those_of_training(minilm: Path) -> None:
    """And not much longer, unless a request says so."""
    first, last = CONTEXT.index("Alice"), CONTEXT.index("rains")
    task = make_task(TASK, minilm, [record_of("Lyon"), record_of(None)])
    example = task.encode_input({"question": "What?", "context": CONTEXT})
    (window,) = example.features["windows"]
    logits = torch.full((1, 2, len(window)), -9.0)
    logits[0, 0, window.text[0]] = 5.0
    logits[0, 1, window.text[-2]] = 5.0

    assert task.longest_answer == 64
    assert task.has_unanswerable
    whole = task.answer(example, logits, {"max_answer_len": 50, "handle_impossible_answer": False})
    assert (whole["start"], whole["end"]) == (first, last + len("rains"))
    shorter = task.answer(example, logits, {"handle_impossible_answer": False})
    assert shorter["end"] - shorter["start"] <= 64


def test_scores_what_a_request_would_be_answered(answerer: Any) -> None:
    examples = encoded(answerer, [record_of("Hamburg-Altona"), record_of("Lyon")])
    predictions = []
    for example, place in zip(examples, [examples[0].target.places[0]] * 2, strict=True):
        logits = torch.full((1, 2, len(example.features["windows"][0])), -9.0)
        logits[0, 0, place[0]] = logits[0, 1, place[1]] = 9.0
        predictions.append(logits)

    found = values(answerer.score(judged(examples, predictions)))

    assert found == {"exact_match": 0.5, "answer_f1": 0.5}
    worst = answerer.worst(judged(examples, predictions))[0]
    assert (worst.expected, worst.predicted) == ("Lyon", "Hamburg-Altona")


def test_learns_from_little(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    records = quantity_answers(150, answerable=0.7)
    spec = task_spec(storage, TASK, records[:120], records[120:], learning_rate=3e-3, batch_size=4)

    attempt = run_task(spec, minilm)

    before, after = validations(attempt, "answer_f1")
    assert before < 0.3
    assert after > 0.5


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("Where?", "inputs"),
        ({"question": "Where?", "text": "There."}, "inputs"),
        ({"question": "Where?"}, "inputs.context"),
        ({"question": " ", "context": "There."}, "inputs.question"),
        ({"question": 3, "context": "There."}, "inputs.question"),
    ],
)
def test_refuses_a_wrong_input(answerer: Any, value: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as error:
        answerer.encode_input(value)
    assert error.value.param == param


@pytest.mark.parametrize(
    "parameters", [{"top_k": 0}, {"max_answer_len": 0}, {"doc_stride": 3}, {"top_k": "all"}]
)
def test_refuses_a_wrong_parameter(answerer: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        answered(answerer, {"question": "Who?", "context": CONTEXT}, **parameters)
    assert str(error.value.param).startswith("parameters")


def test_refuses_a_file_without_answers() -> None:
    with pytest.raises(InvalidInput, match="no record has an answer"):
        QuestionAnswering.survey(numbered([record_of(None)]))


def pipeline_answers(
    task: Any, question: str, context: str, may_be_none: bool, max_answer_len: int
) -> list[tuple[tuple[int, int], float]]:
    """Return spans and scores, best first, as transformers 4 had them for one window."""
    encoding = task.tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoding.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = task.model(**encoding)
    is_context = torch.tensor([one == 1 for one in encoding.sequence_ids(0)])
    is_counted = is_context.clone()
    is_counted[0] = may_be_none
    starts, ends = (
        logits[0].double().masked_fill(~is_counted, -torch.inf).softmax(dim=0)
        for logits in (output.start_logits, output.end_logits)
    )
    found: dict[tuple[int, int], float] = {}
    if may_be_none:
        found[0, 0] = float(starts[0] * ends[0])
    places = is_context.nonzero().flatten().tolist()
    for start in places:
        for end in range(start, min(start + max_answer_len, places[-1] + 1)):
            words = [encoding.token_to_chars(at) for at in (start, end)]
            of_word = [encoding.token_to_word(at) for at in (start, end)]
            if of_word[0] is not None:
                words = [encoding.word_to_chars(one, sequence_index=1) for one in of_word]
            span = (words[0].start, words[1].end)
            found[span] = max(found.get(span, 0.0), float(starts[start] * ends[end]))
    assert len(offsets) > len(places) > 10
    return sorted(found.items(), key=lambda one: -one[1])
