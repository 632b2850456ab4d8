import io
import tempfile
from typing import BinaryIO, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.domain.datasets import DatasetSummary, check_dataset, read_records
from app.domain.errors import InvalidFile
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    PNG,
    USER,
    archive,
    chat,
    lines,
    outcome_of,
    parquet,
    refusal_of,
    summary_of,
    table,
)

IN_EVERY_FORMAT = {
    "jsonl": lines({"text": "a", "label": "x"}),
    "csv": table(["text", "label"], ["a", "x"]),
    "parquet": parquet({"text": ["a"], "label": ["x"]}),
    "zip": archive({"manifest.jsonl": lines({"text": "a", "label": "x"})}),
}


@pytest.mark.parametrize("content", IN_EVERY_FORMAT.values(), ids=IN_EVERY_FORMAT)
def test_the_content_tells_the_format(content: bytes) -> None:
    assert summary_of(content) == DatasetSummary("labelled_text", 1)
    # Uploads are held in such a file.
    with tempfile.SpooledTemporaryFile(max_size=1) as file:
        file.write(content)
        file.seek(0)
        assert len(list(read_records(cast(BinaryIO, file)))) == 1


@pytest.mark.parametrize("content", IN_EVERY_FORMAT.values(), ids=IN_EVERY_FORMAT)
def test_the_file_stays_open(content: bytes) -> None:
    stream = io.BytesIO(content)
    check_dataset(stream)
    stream.seek(0)
    assert stream.read() == content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "Excel"),
        (b"ARROW1\0\0", "Parquet"),
        (b"SQLite format 3\0", "CSV"),
        (b"7z\xbc\xaf\x27\x1c", "zip"),
    ],
)
def test_other_formats_are_known_by_name(content: bytes, told: str) -> None:
    assert told in refusal_of(content).message


BEGINNINGS = st.sampled_from(
    [b"", b"PAR1", b"PK\3\4", b"PK\5\6", b"{", b"[", b"text\n", b"text,label\n", b"\xef\xbb\xbf"]
)


@given(BEGINNINGS, st.binary(max_size=300), st.sampled_from([b"", b"PAR1", b"PK\5\6" + bytes(18)]))
@example(b"PAR1", b"\0" * 4, b"PAR1")
@settings(max_examples=300)
def test_whatever_the_bytes_are_they_are_read_or_refused(
    beginning: bytes, middle: bytes, end: bytes
) -> None:
    outcome_of(beginning + middle + end)


def test_an_error_of_the_disk_is_not_the_files() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 4:
                raise OSError(5, "Input/output error")
            return super().read(size)

    for content in (IN_EVERY_FORMAT["parquet"], archive({"manifest.jsonl": b"x", "a": PNG})):
        with pytest.raises(OSError, match="Input/output error"):
            check_dataset(Failing(content))


def test_reading_stops_at_the_first_fault() -> None:
    good = chat(USER, ASSISTANT)
    records = read_records(io.BytesIO(good + b"{}\n"))
    assert next(records)[0] == 1
    with pytest.raises(InvalidFile, match=r"^line 2: "):
        next(records)
