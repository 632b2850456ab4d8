"""Datasets in every format, and what comes of reading them."""

import base64
import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.domain.datasets import DatasetSummary, check_dataset, read_records
from app.domain.errors import InvalidFile

# The longest that a message may be, whatever the file holds.
MAX_MESSAGE_CHARACTERS = 700

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "look"}}

# The shortest that pass for what they are: only their first bytes are looked at.
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(16)


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def chat(*messages: Any, **more: Any) -> bytes:
    return lines({"messages": messages, **more})


def table(*rows: Sequence[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def parquet(columns: Mapping[str, Any] | pa.Table, **options: Any) -> bytes:
    content = io.BytesIO()
    written = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    pq.write_table(written, content, **options)
    return content.getvalue()


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as written:
        for name, file in files.items():
            written.writestr(name, file)
    return content.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def summary_of(content: bytes) -> DatasetSummary:
    return check_dataset(io.BytesIO(content))


def refusal_of(content: bytes) -> InvalidFile:
    with pytest.raises(InvalidFile) as refused:
        check_dataset(io.BytesIO(content))
    assert len(refused.value.message) <= MAX_MESSAGE_CHARACTERS
    assert refused.value.param == "file"
    return refused.value


def outcome_of(content: bytes) -> DatasetSummary | InvalidFile:
    """Return what comes of a file; anything but these two is an error of ours."""
    outcome: DatasetSummary | InvalidFile
    try:
        outcome = check_dataset(io.BytesIO(content))
    except InvalidFile as refusal:
        outcome = refusal
    if isinstance(outcome, InvalidFile):
        assert len(outcome.message) <= MAX_MESSAGE_CHARACTERS
    return outcome


def numbered(content: bytes) -> list[tuple[int, Any]]:
    return list(read_records(io.BytesIO(content)))


def records_of(content: bytes) -> list[Any]:
    return [record for _, record in numbered(content)]
