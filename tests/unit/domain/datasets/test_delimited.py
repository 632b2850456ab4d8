import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets import (
    MAX_RECORD_BYTES,
    ChatRecord,
    CompletionRecord,
    FeedbackRecord,
    LabelledImageRecord,
    LabelledTextRecord,
    QuestionAnswerRecord,
    ReinforcementRecord,
    ScoredPairsRecord,
    TaggedTokensRecord,
    TextPairsRecord,
    TextRecord,
)
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    PNG,
    USER,
    data_url,
    numbered,
    outcome_of,
    records_of,
    refusal_of,
    summary_of,
    table,
)

PAIR = table(["prompt", "completion"], ["a", "b"])


def test_a_row_is_a_record_by_the_names_of_its_columns() -> None:
    assert records_of(PAIR) == [CompletionRecord("a", "b")]
    assert records_of(table(["completion", "prompt"], ["b", "a"])) == [CompletionRecord("a", "b")]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_cells_are_divided_by_what_divides_the_header(delimiter: str) -> None:
    content = table(["prompt", "completion"], ["a, b; c\td", "e"], delimiter=delimiter)
    assert records_of(content) == [CompletionRecord("a, b; c\td", "e")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte_order_mark"])
def test_what_excel_writes_is_read(mark: bytes, end: bytes) -> None:
    assert records_of(mark + b"prompt,completion\r\na,b" + end) == [CompletionRecord("a", "b")]


def test_one_column_has_nothing_to_divide() -> None:
    assert records_of(b"text\none\n\ntwo\n") == [TextRecord("one"), TextRecord("two")]
    assert records_of(b'"text"\n"one, two"\n') == [TextRecord("one, two")]


def test_a_record_has_the_number_of_the_line_where_it_begins() -> None:
    content = table(["text", "label"], ["one\ntwo\n", "x"], ["three", "y"], ["", ""], ["a", "z"])
    assert [number for number, _ in numbered(b"\n" + content)] == [3, 6, 8]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["0", "1", "-12"], [0, 1, -12]),
        (["0", "0.5", "1e-3"], [0.0, 0.5, 0.001]),
        (["True", "false"], [True, False]),
        (["1", "2", "three"], ["1", "2", "three"]),
        (["01", "2"], [1.0, 2.0]),
        (["true", "1"], ["true", "1"]),
        (["1" * 30, "2"], [float("1" * 30), 2.0]),
    ],
    ids=["int", "float", "bool", "text_late", "leading_zero", "bool_and_int", "many_digits"],
)
def test_a_label_is_what_all_labels_of_the_file_can_be(cells: list[str], labels: list[Any]) -> None:
    content = table(["label", "text"], *([cell, "a"] for cell in cells))
    found = [record.label for record in records_of(content)]
    assert [(type(label), label) for label in found] == [(type(one), one) for one in labels]


RECORDS: dict[str, tuple[bytes, Any]] = {
    "chat": (
        table(["messages", "tools"], [json.dumps([USER, ASSISTANT]), ""]),
        ChatRecord,
    ),
    "reinforcement": (
        table(["messages", "answer", "more"], [json.dumps([USER]), "42", '{"a": [1]}']),
        ReinforcementRecord,
    ),
    "feedback": (table(["prompt", "completion", "label"], ["a", "b", "TRUE"]), FeedbackRecord),
    "labels": (table(["text", "labels"], ["a", '["x", "y"]']), LabelledTextRecord),
    "tokens": (table(["tokens", "tags"], ['["a"]', '["B-x"]']), TaggedTokensRecord),
    "answers": (
        table(["question", "context", "answers"], ["a", "b", '{"text":[],"answer_start":[]}']),
        QuestionAnswerRecord,
    ),
    "image": (
        table(["image", "label"], [data_url(PNG + bytes(1 << 20)), "7"]),
        LabelledImageRecord,
    ),
    "pairs": (table(["anchor", "positive", "negative"], ["a", "b", ""]), TextPairsRecord),
    "scores": (table(["sentence1", "sentence2", "score"], ["a", "b", "1"]), ScoredPairsRecord),
}


@pytest.mark.parametrize(("content", "struct"), RECORDS.values(), ids=RECORDS)
def test_cells_have_the_types_of_the_kind(content: bytes, struct: type) -> None:
    (record,) = records_of(content)
    assert isinstance(record, struct)


def test_further_columns_of_a_reinforcement_record_are_the_graders() -> None:
    ((_, record),) = numbered(RECORDS["reinforcement"][0])
    assert record.item == {"answer": "42", "more": {"a": [1]}}


def test_an_empty_cell_is_absent_or_an_empty_text() -> None:
    assert records_of(table(["prompt", "completion"], ["", "b"])) == [CompletionRecord("", "b")]
    assert records_of(RECORDS["pairs"][0]) == [TextPairsRecord("a", "b", None)]
    content = table(["text", "text_pair", "label"], ["a", "", "x"])
    assert records_of(content) == [LabelledTextRecord("a", None, "x")]


REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no_known_column": (b"Text,Sentiment\na,b\n", ("line 1", "'Text', 'Sentiment'", "text, label")),
    "columns_of_another_tool": (b"sentence,label\na,b\n", ("line 1", "'sentence' as 'text'")),
    "plain_text": (b"Once upon a time, there was\n", ("line 1", "CSV begins with a header")),
    "unknown_column": (
        b"text,label,source\na,b,c\n",
        ("line 1", "unknown column 'source'", "text, text_pair, label, labels"),
    ),
    "column_missing": (b"\nsentence1,sentence2\na,b\n", ("line 2", "no column 'score'")),
    "column_twice": (b"text,text\na,b\n", ("line 1", "two columns", "'text'")),
    "column_of_pandas": (b",text,label\n0,a,b\n", ("line 1", "column 1", "index=False")),
    "too_many_cells": (PAIR + b"a,b,c\n", ("line 3", "3 cells", "header 2", "double quotes")),
    "too_few_cells": (PAIR + b"a\n", ("line 3", "1 cells")),
    "quote_not_closed": (PAIR + b'"a,b\n', ("line 3", "never closed")),
    "text_after_a_quote": (PAIR + b'"a" b,c\n', ("line 3", "double quote", "twice")),
    "carriage_returns": (b"prompt,completion\ra,b\r", ("line 1", "carriage return")),
    "latin_1": (PAIR + "é,b\n".encode("latin-1"), ("line 3", "byte 1", "CSV UTF-8")),
    "record_too_long": (
        PAIR + b'"a\n' + b"x\n" * MAX_RECORD_BYTES,
        ("line 3", f"{MAX_RECORD_BYTES:,}", "quote"),
    ),
    "not_json": (
        table(["tokens", "tags"], ["['a']", "['O']"]),
        ("line 2", "'tokens'", "JSON", "double quotes"),
    ),
    "json_of_another_type": (table(["tokens", "tags"], ['"a"', '["O"]']), ("'tokens'", "array")),
    "json_too_deep": (
        table(["messages", "tools"], [json.dumps([USER, ASSISTANT]), "[" * 90_000]),
        ("line 2", "'tools' is nested deeper"),
    ),
    "no_number": (
        table(["sentence1", "sentence2", "score"], ["a", "b", "high"]),
        ("'score'", "'high'"),
    ),
    "no_boolean": (
        table(["prompt", "completion", "label"], ["a", "b", "yes"]),
        ("'label'", "'yes'"),
    ),
    "no_score": (
        table(["sentence1", "sentence2", "score"], ["a", "b", ""]),
        ("line 2", "'score' is missing"),
    ),
    "no_label": (table(["text", "label"], ["a", "x"], ["b", ""]), ("line 3", "neither")),
    "text_empty": (table(["text", "label"], ["", "x"]), ("line 2", "'text' is empty")),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_bad_row_is_refused_by_line_and_column(content: bytes, told: tuple[str, ...]) -> None:
    refusal = refusal_of(content)
    for words in told:
        assert words in refusal.message
    assert refusal.code == "invalid_record"


def test_a_header_alone_is_no_record() -> None:
    assert refusal_of(b"prompt,completion\n").code == "empty_file"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=5))
def test_any_text_comes_back_as_it_was(rows: list[tuple[str, str]]) -> None:
    content = table(["prompt", "completion"], *rows)
    assert records_of(content) == [CompletionRecord(*row) for row in rows]


@given(
    st.sampled_from([case[0][:2000] for case in [*RECORDS.values(), *REFUSED.values()]]),
    st.integers(0, 200),
    st.binary(max_size=6),
)
def test_a_damaged_table_is_read_or_refused(content: bytes, position: int, damage: bytes) -> None:
    outcome_of(content[:position] + damage + content[position + len(damage) :])


def test_a_large_table_is_counted() -> None:
    assert summary_of(PAIR + b"a,b\n" * 5_000).record_count == 5_001
