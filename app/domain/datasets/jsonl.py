"""JSON lines: UTF-8, one record a line. The fast path decodes a line straight into its struct."""

from collections.abc import Iterator
from typing import BinaryIO

from app.domain.datasets.decoding import Decoding
from app.domain.datasets.limits import MAX_MEDIA_RECORD_BYTES
from app.domain.datasets.records import Record

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, Record]]:
    """Yield each record with its 1-based line number. Raises: InvalidFile."""
    number = 0
    max_bytes = MAX_MEDIA_RECORD_BYTES
    while line := stream.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise _too_long(number, max_bytes, decoding)
        if line.isspace():
            continue
        if decoding.kind is None:
            _check_beginning(number, line, decoding)
            max_bytes = decoding.recognise(number, decoding.parse(number, line)).max_bytes
            if len(line) > max_bytes:
                raise _too_long(number, max_bytes, decoding)
        yield number, decoding.line(number, line)


def _too_long(number: int, max_bytes: int, decoding: Decoding) -> Exception:
    return decoding.wrong(number, f"the line is longer than {max_bytes:,} bytes")


def _check_beginning(number: int, line: bytes, decoding: Decoding) -> None:
    if line.startswith(_BYTE_ORDER_MARK):
        raise decoding.wrong(
            number, "the file starts with a byte-order mark; save it as plain UTF-8"
        )
    if number == 1 and line.startswith(_UTF_16_MARKS):
        raise decoding.wrong(
            number, "byte 1 is not valid UTF-8; this looks like UTF-16, save the file as UTF-8"
        )
