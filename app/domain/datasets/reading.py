"""Reading a dataset, whatever its format."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.domain.datasets import jsonl
from app.domain.datasets.decoding import Decoding
from app.domain.datasets.kinds import RECORD_KINDS
from app.domain.datasets.media import NoMediaFiles
from app.domain.datasets.records import Record
from app.domain.errors import InvalidFile


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a valid dataset holds."""

    record_kind: str
    record_count: int


def check_dataset(stream: BinaryIO) -> DatasetSummary:
    """Read a whole dataset and say what it holds.

    Raises:
        InvalidFile: naming the first line at fault, the field and what was expected.
    """
    decoding = Decoding(NoMediaFiles())
    count = sum(1 for _ in _read(stream, decoding))
    assert decoding.kind is not None
    return DatasetSummary(record_kind=decoding.kind.name, record_count=count)


def read_records(stream: BinaryIO) -> Iterator[tuple[int, Record]]:
    """Yield each record with its 1-based line number, in constant memory.

    Raises:
        InvalidFile: naming the first line at fault, or that there is no record at all.
    """
    return _read(stream, Decoding(NoMediaFiles()))


def _read(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, Record]]:
    yield from jsonl.read(stream, decoding)
    if decoding.kind is None:
        raise InvalidFile(
            "the file has no records; expected JSON lines such as " + RECORD_KINDS[0].example,
            param="file",
            code="empty_file",
        )
