import datetime
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.datasets import (
    MAX_RECORD_BYTES,
    ChatRecord,
    LabelledImageRecord,
    LabelledTextRecord,
    ReinforcementRecord,
    ScoredPairsRecord,
    TaggedTokensRecord,
    TextRecord,
)
from app.domain.errors import InvalidFile
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    PNG,
    USER,
    numbered,
    outcome_of,
    parquet,
    records_of,
    refusal_of,
    summary_of,
)

TEXTS = parquet({"text": ["a", "b"], "label": ["x", "y"]})


def test_a_row_is_a_record_by_the_names_of_its_columns() -> None:
    assert numbered(TEXTS) == [
        (1, LabelledTextRecord("a", None, "x")),
        (2, LabelledTextRecord("b", None, "y")),
    ]


@pytest.mark.parametrize("label", [1, 0.5, True, "x"])
def test_labels_keep_their_type(label: Any) -> None:
    (record,) = records_of(parquet({"text": ["a"], "label": [label]}))
    assert (type(record.label), record.label) == (type(label), label)


def test_rows_are_numbered_across_batches_and_row_groups() -> None:
    content = parquet({"text": [f"{index}" for index in range(100)]}, row_group_size=40)
    assert [number for number, _ in numbered(content)] == list(range(1, 101))
    bad = parquet({"text": ["a"] * 70 + [""] + ["a"] * 9}, row_group_size=40)
    assert refusal_of(bad).message == "row 71: 'text' is empty; expected text"


def test_fields_that_are_null_are_absent() -> None:
    caller = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    rows = [[USER | {"name": "Ada"}, ASSISTANT], [USER, caller, ASSISTANT]]
    first, second = records_of(parquet({"messages": rows}))
    assert isinstance(first, ChatRecord)
    assert [message.name for message in first.messages] == ["Ada", None]
    assert second.messages[1].content is None
    assert second.messages[1].tool_calls == [{"id": "1"}]


def test_objects_may_be_json() -> None:
    # A column of Parquet has one shape, and the parameters of tools have many.
    (record,) = records_of(parquet({"messages": [json.dumps([USER, ASSISTANT])]}))
    assert isinstance(record, ChatRecord)
    (graded,) = records_of(parquet({"messages": [json.dumps([USER])], "answer": [42]}))
    assert isinstance(graded, ReinforcementRecord)
    assert graded.item == {"answer": 42}


@pytest.mark.parametrize("value", [PNG, {"bytes": PNG, "path": "a.png"}])
def test_images_are_bytes(value: Any) -> None:
    content = parquet({"image": [value], "label": ["x"]})
    assert records_of(content) == [LabelledImageRecord(PNG, "x")]


def test_a_whole_number_may_be_a_score() -> None:
    content = parquet({"sentence1": ["a"], "sentence2": ["b"], "score": [1]})
    assert records_of(content) == [ScoredPairsRecord("a", "b", 1.0)]


def with_features(table: pa.Table, features: Any) -> bytes:
    written = json.dumps({"info": {"features": features}})
    return parquet(table.replace_schema_metadata({"huggingface": written}))


def test_classes_have_the_names_that_hugging_face_gives_them() -> None:
    names = {"_type": "ClassLabel", "names": ["neg", "pos"]}
    table = pa.table({"text": ["a", "b"], "label": [1, 0]})
    found = [record.label for record in records_of(with_features(table, {"label": names}))]
    assert found == ["pos", "neg"]
    tags = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["O", "B-x"]}}
    table = pa.table({"tokens": [["a", "b"]], "tags": [[0, 1]]})
    assert records_of(with_features(table, {"tags": tags})) == [
        TaggedTokensRecord(["a", "b"], ["O", "B-x"])
    ]


@pytest.mark.parametrize(
    "features", [None, 1, [], {"label": []}, {"label": {"_type": "ClassLabel", "names": [1]}}]
)
def test_what_hugging_face_would_not_write_names_nothing(features: Any) -> None:
    table = pa.table({"text": ["a"], "label": [1]})
    assert records_of(with_features(table, features)) == [LabelledTextRecord("a", None, 1)]


def test_the_index_of_pandas_is_no_column() -> None:
    content = parquet({"text": ["a"], "__index_level_0__": [7]})
    assert records_of(content) == [TextRecord("a")]


def test_categories_are_text() -> None:
    many = [f"{index}" * 100 for index in range(5_000)]
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(many))
    content = parquet({"text": ["a", "b"], "label": column})
    assert [record.label for record in records_of(content)] == many[:2]


INVALID_UTF_8 = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
)

REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "cut_off": (TEXTS[:-20], ("cut off", "PAR1")),
    "first_bytes_only": (b"PAR1", ("cut off",)),
    "encrypted": (TEXTS[:-4] + b"PARE", ("encrypted",)),
    "footer_too_long": (TEXTS[:-8] + b"\xff\xff\xff\x7fPAR1", ("damaged", "2,147,483,647")),
    "footer_overwritten": (TEXTS[:-60] + bytes(52) + TEXTS[-8:], ("damaged",)),
    "no_known_column": (parquet({"Text": ["a"]}), ("'Text'", "text, label")),
    "unknown_column": (
        parquet({"text": ["a"], "label": [1], "id": [1]}),
        ("unknown column 'id'", "text, text_pair, label, labels"),
    ),
    "column_missing": (parquet({"tokens": [["a"]]}), ("no column 'tags'",)),
    "text_of_another_type": (
        parquet({"text": [datetime.datetime(2020, 1, 1)]}),
        ("row 1", "'text'", "str", "datetime"),
    ),
    "item_of_another_type": (
        parquet({"messages": [[USER]], "answer": [datetime.date(2020, 1, 1)]}),
        ("row 1", "'answer'", "JSON does not"),
    ),
    "null": (parquet({"text": ["a", None]}), ("row 2", "'text' is missing")),
    "null_in_a_list": (
        parquet({"tokens": [["a", None]], "tags": [["O", "O"]]}),
        ("row 1", "'tokens[1]'", "null"),
    ),
    "invalid_utf_8": (parquet({"text": INVALID_UTF_8}), ("row 2", "UTF-8")),
    "row_too_large": (
        parquet({"text": ["a", "x" * MAX_RECORD_BYTES]}, compression="none"),
        ("row 2", f"{MAX_RECORD_BYTES:,}"),
    ),
    "page_too_large": (
        parquet({"text": ["x" * (65 << 20)]}, use_dictionary=False, compression="zstd"),
        ("a page", "'text'", "smaller row groups"),
    ),
    "shared_prefixes": (
        parquet(
            {"tokens": [["a"]], "tags": [["O"]]},
            use_dictionary=False,
            column_encoding={
                "tokens.list.element": "DELTA_BYTE_ARRAY",
                "tags.list.element": "PLAIN",
            },
        ),
        ("'element'", "DELTA_BYTE_ARRAY", "PLAIN"),
    ),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_by_row_and_column(content: bytes, told: tuple[str, ...]) -> None:
    message = refusal_of(content).message
    for words in told:
        assert words in message


def test_a_page_that_says_it_is_larger_is_refused() -> None:
    """The file's summary may say anything: the header of the page is what is unpacked by."""
    content = parquet({"text": ["a" * 40]}, use_dictionary=False, compression="none")
    # The first page's header: its type, then its size of 50 bytes, twice, as zigzag numbers.
    assert content[4:10] == b"\x15\x00\x15\x64\x15\x64"
    claimed = b"\x15\x00\x15\xfe\xff\xff\xff\x0f\x15\x5c"
    damaged = content[:4] + claimed + content[14:]
    assert len(damaged) == len(content)
    assert "2,147,483,647" in refusal_of(damaged).message


def test_a_file_without_rows_is_no_dataset() -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    assert refusal_of(parquet(empty)).code == "empty_file"


@given(st.integers(0, len(TEXTS) - 1), st.binary(min_size=1, max_size=8))
@settings(max_examples=200)
def test_a_damaged_file_is_read_or_refused(position: int, damage: bytes) -> None:
    outcome_of(TEXTS[:position] + damage + TEXTS[position + len(damage) :])


@given(st.integers(0, len(TEXTS)), st.binary(max_size=100))
@settings(max_examples=50)
def test_a_file_cut_short_is_refused(length: int, end: bytes) -> None:
    outcome = outcome_of(b"PAR1" + TEXTS[4:length] + end)
    assert isinstance(outcome, InvalidFile) or length == len(TEXTS)


def test_a_large_file_is_counted() -> None:
    content = parquet({"text": ["some text"] * 5_000})
    assert summary_of(content).record_count == 5_000
