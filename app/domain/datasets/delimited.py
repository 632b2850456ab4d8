"""CSV and its kin: a header row, then a record a row. Commas, tabs or semicolons divide cells."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from app.domain.datasets.columns import (
    AnyLabel,
    Column,
    check_columns,
    check_names,
    columns_of,
    probe,
    typed_row,
)
from app.domain.datasets.decoding import Decoding
from app.domain.datasets.faults import WrongRecord
from app.domain.datasets.kinds import RECORD_KINDS
from app.domain.datasets.limits import MAX_MEDIA_RECORD_BYTES
from app.domain.datasets.records import Record
from app.domain.errors import InvalidFile

# The reader's own limit of a cell is below what a record may have, and it is the process's. How
# long a record may be is watched line by line.
csv.field_size_limit(MAX_MEDIA_RECORD_BYTES)

_DELIMITERS = ",\t;"
_BOOLEAN = re.compile(r"true|false", re.IGNORECASE)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?(nan|inf)", re.I)


def is_header(line: bytes) -> bool:
    """Whether a file's first line looks like a header and not like JSON."""
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return False
    if not text or text.startswith(("{", "[")) or "\0" in text:
        return False
    if any(delimiter in text for delimiter in _DELIMITERS):
        return True
    # One column has nothing to divide.
    return any(kind.is_meant({text.strip('"'): None}) for kind in RECORD_KINDS)


def read(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, Record]]:
    """Yield each record with the 1-based number of the line where it begins.

    Cells have the types that the kind of record says; lists and objects are JSON. A class label
    is a whole number, a decimal number, true or false, or else text: what all labels can be.

    Raises:
        InvalidFile: naming the first line at fault, and the column.
    """
    start = stream.tell()
    rows = _rows(stream, decoding)
    header_number, names = next(rows, (1, []))
    names = [name.strip() for name in names]
    try:
        check_names(names)
    except WrongRecord as error:
        raise decoding.wrong(header_number, f"{error} (CSV begins with a header)") from None
    columns: list[Column] = []
    for number, cells in rows:
        _check_width(number, names, cells, decoding)
        if not columns:
            row = dict(zip(names, cells, strict=True))
            columns = _columns(header_number, names, number, row, decoding)
            columns = _with_label_type(columns, stream, start)
        try:
            typed = typed_row(columns, cells)
        except WrongRecord as error:
            raise decoding.wrong(number, str(error)) from None
        yield number, decoding.row(number, typed)


def _check_width(
    number: int, names: Sequence[str], cells: Sequence[str], decoding: Decoding
) -> None:
    if len(cells) != len(names):
        raise decoding.wrong(
            number,
            f"the row has {len(cells)} cells and the header {len(names)}; put text with a comma, "
            "tab or semicolon in it into double quotes",
        )


def _columns(
    header_number: int, names: Sequence[str], number: int, row: dict[str, str], decoding: Decoding
) -> list[Column]:
    kind = decoding.recognise(number, probe(row))
    try:
        check_columns(kind, names)
    except WrongRecord as error:
        raise decoding.wrong(header_number, str(error)) from None
    return columns_of(kind, names)


def _with_label_type(columns: list[Column], stream: BinaryIO, start: int) -> list[Column]:
    """Return the columns with the type of a label that may have any, from the whole file."""
    index = next((index for index, column in enumerate(columns) if column.cell is AnyLabel), None)
    if index is None:
        return columns
    position = stream.tell()
    stream.seek(start)
    label_type = _label_type(stream, index)
    stream.seek(position)
    return [
        replace(column, cell=label_type) if column.cell is AnyLabel else column
        for column in columns
    ]


def _label_type(stream: BinaryIO, index: int) -> type:
    possible: dict[type, re.Pattern[str]] = {bool: _BOOLEAN, int: _INTEGER, float: _NUMBER}
    rows = _rows(stream, Decoding())
    next(rows)
    try:
        for _, cells in rows:
            if len(cells) <= index or not (label := cells[index]):
                continue
            possible = {
                kind: pattern for kind, pattern in possible.items() if pattern.fullmatch(label)
            }
            if not possible:
                break
    except InvalidFile:
        pass  # It is met, and told, when its turn comes.
    return next(iter(possible), str)


def _rows(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, and the line where it begins."""
    lines = _Lines(stream, decoding)
    reader = csv.reader(lines, delimiter=lines.delimiter(), strict=True)
    while True:
        number = lines.begin_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise decoding.wrong(number, _in_our_words(error)) from None
        if cells is None:
            return
        if any(cells):
            yield number, cells


class _Lines:
    """The lines of a text, watched so that no record is longer than it may be."""

    def __init__(self, stream: BinaryIO, decoding: Decoding) -> None:
        self._stream = stream
        self._decoding = decoding
        self._number = 0
        self._record_number = 1
        self._record_bytes = 0

    def begin_record(self) -> int:
        """Return the number of the line where it begins."""
        self._record_number, self._record_bytes = self._number + 1, 0
        return self._record_number

    def delimiter(self) -> str:
        """Return what divides the cells of the header, which is still to be read then."""
        start = self._stream.tell()
        line = next(self, "")
        self._stream.seek(start)
        self._number = 0
        return max(_DELIMITERS, key=line.count)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        max_bytes = self._decoding.max_record_bytes
        line = self._stream.readline(max_bytes + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._record_bytes += len(line)
        if self._record_bytes > max_bytes:
            raise self._decoding.wrong(
                self._record_number,
                f"the record is longer than {max_bytes:,} bytes; is a quote not closed?",
            )
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._decoding.wrong(
                self._number,
                f"byte {error.start + 1} is not valid UTF-8; save the file as UTF-8 (in Excel: "
                "CSV UTF-8)",
            ) from None
        # Excel puts a byte-order mark in front, and offers no way to leave it out.
        return text.removeprefix("\ufeff") if self._number == 1 else text


def _in_our_words(error: csv.Error) -> str:
    text = str(error)
    if "new-line character" in text:
        return "a line ends with a carriage return alone; end lines with a line feed"
    if "unexpected end of data" in text:
        return "a double quote is opened here and never closed"
    if "expected after" in text:
        return (
            "text goes on after a closing double quote; write a double quote inside of text twice"
        )
    return f"not valid CSV: {text}"
