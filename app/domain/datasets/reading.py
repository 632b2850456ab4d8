"""Reading a dataset. Its content tells the format: names of files say nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.domain.datasets import archive, delimited, jsonl
from app.domain.datasets.decoding import Decoding
from app.domain.datasets.faults import wrong_file
from app.domain.datasets.kinds import RECORD_KINDS
from app.domain.datasets.records import Record
from app.domain.errors import InvalidFile
from app.domain.registry import resolve

_PARQUET = b"PAR1"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PARQUET_READER = "app.domain.datasets.parquet:read"
_HEAD_BYTES = 1 << 16
# What else people have, by its first bytes.
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "this is a gzip file; upload what it holds, or a zip with a manifest"),
    (b"7z\xbc\xaf\x27\x1c", "this is a 7z file; make a zip with a manifest"),
    (b"\xd0\xcf\x11\xe0", "this is an old Excel or Word file; save the sheet as CSV UTF-8"),
    (b"%PDF-", "this is a PDF; expected records"),
    (b"ARROW1", "this is an Arrow file; write Parquet instead"),
    (b"SQLite format 3\0", "this is an SQLite database; export the table as CSV"),
)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a valid dataset holds."""

    record_kind: str
    record_count: int


def check_dataset(stream: BinaryIO) -> DatasetSummary:
    """Read a whole dataset and say what it holds.

    Args:
        stream: seekable, at its beginning.

    Raises:
        InvalidFile: naming the first line at fault, the field and what was expected.
    """
    decoding, records = _open(stream)
    count = sum(1 for _ in records)
    if decoding.kind is None or count == 0:
        raise _empty()
    return DatasetSummary(record_kind=decoding.kind.name, record_count=count)


def read_records(stream: BinaryIO) -> Iterator[tuple[int, Record]]:
    """Yield each record with its 1-based number, in constant memory.

    The number is that of the line where the record begins; in Parquet, that of the row.

    Args:
        stream: seekable, at its beginning.

    Raises:
        InvalidFile: naming the first line at fault, or that there is no record at all.
    """
    decoding, records = _open(stream)
    yield from records
    if decoding.kind is None:
        raise _empty()


def _open(stream: BinaryIO) -> tuple[Decoding, Iterator[tuple[int, Record]]]:
    head = stream.read(len(_PARQUET))
    stream.seek(0)
    if head == _PARQUET:
        decoding = Decoding(unit="row")
        return decoding, resolve(_PARQUET_READER)(stream, decoding)
    if head in _ZIP:
        opened = archive.open_archive(stream)
        decoding = Decoding(opened.files, within=f" of {opened.manifest_name}")
        return decoding, _read_text(opened.manifest, decoding)
    return (decoding := Decoding()), _read_text(stream, decoding)


def _read_text(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, Record]]:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    for magic, advice in _OTHER_FORMATS:
        if head.startswith(magic):
            raise wrong_file(advice)
    first_line = head.lstrip().partition(b"\n")[0]
    read = delimited.read if delimited.is_header(first_line) else jsonl.read
    return read(stream, decoding)


def _empty() -> InvalidFile:
    return InvalidFile(
        "the file has no records; expected JSON lines such as " + RECORD_KINDS[0].example,
        param="file",
        code="empty_file",
    )
