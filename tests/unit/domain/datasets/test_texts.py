import math
from typing import Any

import pytest

from app.domain.datasets import LabelledTextRecord, QuestionAnswerRecord
from tests.unit.domain.datasets.samples import lines, parquet, records_of, refusal_of, summary_of

SQUAD = {"question": "Who?", "context": "Ada left. Bob too.", "answers": {}}


def squad(text: list[str], start: list[int]) -> bytes:
    return lines(SQUAD | {"answers": {"text": text, "answer_start": start}})


def spans(*entities: tuple[int, int]) -> bytes:
    found = [{"start": start, "end": end, "label": "x"} for start, end in entities]
    return lines({"text": "Ada left", "entities": found})


def labelled(*labels: Any, key: str = "label") -> bytes:
    return lines(*({"text": "a", key: label} for label in labels))


REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "text_empty": (lines({"text": " \n"}), ("line 1", "'text' is empty")),
    "text_number": (lines({"text": 1}), ("'text'", "str", "int")),
    "completion_judged_empty": (
        lines({"prompt": "a", "completion": "", "label": True}),
        ("'completion' is empty",),
    ),
    "feedback_number": (
        lines({"prompt": "a", "completion": "b", "label": 1}),
        ("'label'", "bool", "int"),
    ),
    # Labels.
    "label_null": (lines({"text": "a", "label": None}), ("'label'", "'labels'", "neither")),
    "label_and_labels": (lines({"text": "a", "label": 1, "labels": []}), ("both",)),
    "label_empty": (labelled(""), ("'label' is empty",)),
    "label_list": (labelled(["a"]), ("'label'", "array")),
    "labels_text": (labelled("a", key="labels"), ("'labels'", "array", "str")),
    "labels_twice": (labelled(["a", "a"], key="labels"), ("'a' twice",)),
    "labels_number": (labelled([1], key="labels"), ("'labels[0]'", "int")),
    "pair_empty": (lines({"text": "a", "text_pair": "", "label": 1}), ("'text_pair' is empty",)),
    "label_changes_type": (
        labelled("a", "b", 1),
        ("line 3", "whole number", "string", "one type"),
    ),
    "label_bool_then_int": (labelled(True, 1), ("line 2", "whole number", "true or false")),
    "label_int_then_decimal": (labelled(1, 2, 0.5), ("line 3", "decimal", "3.0")),
    "label_then_labels": (
        labelled("a") + labelled(["a"], key="labels"),
        ("line 2", "'labels' is a list", "'label' is a string"),
    ),
    "label_not_a_number": (
        parquet({"text": ["a", "b"], "label": [1.0, math.nan]}),
        ("row 2", "'label' is nan", "finite"),
    ),
    # Tags.
    "no_tokens": (lines({"tokens": [], "tags": []}), ("'tokens' is empty",)),
    "fewer_tags": (lines({"tokens": ["a", "b"], "tags": ["O"]}), ("2 entries", "'tags' 1")),
    "tag_unknown": (
        lines({"tokens": ["a", "b"], "tags": ["O", "person"]}),
        ("'tags[1]' is 'person'", "B-<label>"),
    ),
    "tag_of_bioes": (lines({"tokens": ["a"], "tags": ["S-x"]}), ("'tags[0]'", "S- and U- are B-")),
    "tag_without_label": (lines({"tokens": ["a"], "tags": ["B-"]}), ("'tags[0]' is 'B-'",)),
    "tag_number": (lines({"tokens": ["a"], "tags": [0]}), ("'tags[0]'", "str", "int")),
    "token_empty": (lines({"tokens": ["a", ""], "tags": ["O", "O"]}), ("'tokens[1]' is empty",)),
    # Spans.
    "span_beyond_the_text": (spans((0, 3), (4, 9)), ("'entities[1]'", "4 to 9", "8 characters")),
    "span_negative": (spans((-1, 3)), ("'entities[0]'", "-1 to 3")),
    "span_empty": (spans((2, 2)), ("'entities[0]'", "start < end")),
    "spans_overlap": (spans((2, 5), (0, 3)), ("'entities[0]' overlaps 'entities[1]'",)),
    "span_huge": (
        b'{"text": "a", "entities": [{"start": 0, "label": "x", "end": ' + b"9" * 5000 + b"}]}",
        ("line 1", "out of range"),
    ),
    "span_without_label": (
        lines({"text": "Ada", "entities": [{"start": 0, "end": 3, "label": ""}]}),
        ("'entities[0].label' is empty",),
    ),
    # Answers.
    "answer_elsewhere": (squad(["Bob"], [0]), ("'answers.answer_start[0]' is 0", "stands at 10")),
    "answer_absent": (squad(["Eve"], [0]), ("'Eve'", "not in the context")),
    "answer_negative": (squad(["too."], [-4]), ("is -4", "stands at 14")),
    "answers_uneven": (squad(["Ada"], []), ("1 entries", "'answers.answer_start' 0")),
    "answer_empty": (squad([""], [0]), ("'answers.text[0]' is empty",)),
    "answers_missing": (lines({"question": "a", "context": "b"}), ("'answers' is missing",)),
    # Pairs.
    "anchor_empty": (lines({"anchor": "", "positive": "b"}), ("'anchor' is empty",)),
    "negative_empty": (
        lines({"anchor": "a", "positive": "b", "negative": " "}),
        ("'negative' is empty",),
    ),
    "score_text": (
        lines({"sentence1": "a", "sentence2": "b", "score": "1"}),
        ("'score'", "float", "str"),
    ),
    "score_not_a_number": (
        parquet({"sentence1": ["a"], "sentence2": ["b"], "score": [math.nan]}),
        ("row 1", "'score' is nan", "finite"),
    ),
    "score_infinite": (
        b"sentence1,sentence2,score\na,b,inf\n",
        ("line 2", "'score' is inf", "finite"),
    ),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_text_is_refused_by_field(content: bytes, told: tuple[str, ...]) -> None:
    message = refusal_of(content).message
    for words in told:
        assert words in message


@pytest.mark.parametrize(
    "labels", [("a", "b"), (True, False), (0, 7), (0.5, -1.0)], ids=["str", "bool", "int", "float"]
)
def test_labels_keep_their_type(labels: tuple[Any, ...]) -> None:
    found = [record.label for record in records_of(labelled(*labels))]
    assert [(type(label), label) for label in found] == [(type(one), one) for one in labels]


def test_a_whole_number_among_decimal_ones_is_one_of_them() -> None:
    found = [record.label for record in records_of(labelled(0.5, 1))]
    assert [(type(label), label) for label in found] == [(float, 0.5), (float, 1.0)]


def test_a_text_may_have_any_number_of_labels() -> None:
    assert records_of(labelled([], ["a", "b"], key="labels")) == [
        LabelledTextRecord(text="a", labels=[]),
        LabelledTextRecord(text="a", labels=["a", "b"]),
    ]


def test_spans_that_touch_do_not_overlap() -> None:
    assert summary_of(spans((3, 8), (0, 3))).record_kind == "text_spans"


def test_spans_count_characters_and_not_bytes() -> None:
    content = lines({"text": "é\U0001f600x", "entities": [{"start": 2, "end": 3, "label": "x"}]})
    assert summary_of(content).record_count == 1


def test_a_question_may_have_no_answer() -> None:
    (record,) = records_of(squad([], []))
    assert isinstance(record, QuestionAnswerRecord)
    assert record.answers.text == []
