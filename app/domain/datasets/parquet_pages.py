"""What the pages of a Parquet file unpack to, checked before pyarrow unpacks any.

A page is unpacked whole, so that a file of some kilobytes could fill the memory. How large it is,
its own header says; the file's footer, which says where it is, may say anything else. pyarrow's
own view of the footer is not used: it ends the process where the footer contradicts itself.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.domain.datasets.faults import quoted, wrong_file
from app.domain.datasets.limits import MAX_PARQUET_FOOTER_BYTES
from app.domain.datasets.thrift import TooShort, read_struct

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
# A page may be large if it is so in the file, as one of images is.
_MAX_PAGE_BYTES = 64 << 20
_MAX_EXPANSION = 8
# Prefixes shared between values, and lists of the same value, unpack to far more than a page.
_MAX_PREFIXED_PAGE_BYTES = 4 << 20
_MAX_LISTED_VALUES = 128 << 20
_MAX_PAGES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_MAX_SCHEMA_LEVELS = 64

_DELTA_BYTE_ARRAY = 7
_REPEATED = 2
# Numbers of fields, as in parquet.thrift.
_SCHEMA, _ROW_GROUPS = 2, 4
_REPETITION, _NAME, _CHILDREN = 3, 4, 5
_COLUMNS, _COLUMN_METADATA = 1, 3
_NUM_VALUES, _CHUNK_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET = 5, 7, 9, 11
_UNCOMPRESSED_BYTES, _COMPRESSED_BYTES = 2, 3
# Headers of data pages of both versions, and in these the number of values and their encoding.
_DATA_PAGES = {5: (1, 2), 8: (1, 4)}


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column as it is stored: text, numbers, or a field or item of one."""

    name: str
    is_listed: bool


@dataclass(frozen=True, slots=True)
class _Page:
    header_bytes: int
    compressed_bytes: int
    uncompressed_bytes: int
    num_values: int
    encoding: int | None


def check_pages(stream: BinaryIO) -> None:
    """Walk over the headers of all pages of a file, and leave it at its beginning.

    Raises:
        InvalidFile: it is cut off, damaged, encrypted, or a page would take too much memory.
    """
    footer = _footer(stream)
    try:
        leaves = list(_leaves(iter(footer[_SCHEMA]), is_listed=False, levels=_MAX_SCHEMA_LEVELS))
        chunks = [
            (leaf, column[_COLUMN_METADATA])
            for group in footer[_ROW_GROUPS]
            for leaf, column in zip(leaves, group[_COLUMNS], strict=True)
        ]
        pages = 0
        for leaf, chunk in chunks:
            pages = _check_chunk(stream, leaf, chunk, pages)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise wrong_file(f"the Parquet file is damaged: {error!r}") from None
    stream.seek(0)


def _footer(stream: BinaryIO) -> dict[int, Any]:
    length = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, length - 8))
    end = stream.read(8)
    if end.endswith(_ENCRYPTED_MAGIC):
        raise wrong_file("the Parquet file is encrypted")
    if length < 12 or not end.endswith(_MAGIC):
        raise wrong_file("the Parquet file is cut off: it does not end with PAR1; upload it whole")
    (footer_bytes,) = struct.unpack("<I", end[:4])
    if footer_bytes > min(length - 12, MAX_PARQUET_FOOTER_BYTES):
        raise wrong_file(
            f"the Parquet file is damaged or has too many row groups: its footer takes "
            f"{footer_bytes:,} bytes"
        )
    stream.seek(length - 8 - footer_bytes)
    try:
        return read_struct(stream.read(footer_bytes))[0]
    except ValueError:
        raise wrong_file("the Parquet file is damaged: its footer is not readable") from None


def _leaves(elements: Iterator[Any], *, is_listed: bool, levels: int) -> Iterator[_Leaf]:
    """Yield the stored columns of the next element of the schema, which goes depth first."""
    element = next(elements)
    is_listed = is_listed or element.get(_REPETITION) == _REPEATED
    children = element.get(_CHILDREN) or 0
    if levels == 0:
        raise ValueError("nested too deep")
    if children <= 0:
        yield _Leaf(element[_NAME].decode("utf-8", "replace"), is_listed)
    for _ in range(children):
        yield from _leaves(elements, is_listed=is_listed, levels=levels - 1)


def _check_chunk(stream: BinaryIO, leaf: _Leaf, chunk: dict[int, Any], pages: int) -> int:
    """Check the pages of a column in a row group, and return how many there are up to its end."""
    if chunk[_NUM_VALUES] <= 0:
        return pages  # Nothing is read of it, and its offsets may lead nowhere.
    position = chunk[_DATA_OFFSET]
    if 0 < chunk.get(_DICTIONARY_OFFSET, 0) < position:
        position = chunk[_DICTIONARY_OFFSET]
    end = position + chunk[_CHUNK_BYTES]
    num_values = 0
    while position < end:
        page = _page_at(stream, position)
        position += page.header_bytes + page.compressed_bytes
        num_values += page.num_values
        pages += 1
        _check_page(leaf, page)
        if leaf.is_listed and num_values > _MAX_LISTED_VALUES:
            raise wrong_file(
                f"the Parquet column {quoted(leaf.name)} has more than {_MAX_LISTED_VALUES:,} "
                "values in a row group; write the file with smaller ones"
            )
        if pages > _MAX_PAGES:
            raise wrong_file(f"the Parquet file has more than {_MAX_PAGES:,} pages")
    return pages


def _check_page(leaf: _Leaf, page: _Page) -> None:
    if page.uncompressed_bytes > max(_MAX_PAGE_BYTES, _MAX_EXPANSION * page.compressed_bytes):
        raise wrong_file(
            f"a page of the Parquet column {quoted(leaf.name)} unpacks from "
            f"{page.compressed_bytes:,} to {page.uncompressed_bytes:,} bytes; write the file with "
            "smaller row groups"
        )
    if page.encoding == _DELTA_BYTE_ARRAY and (
        leaf.is_listed or page.uncompressed_bytes > _MAX_PREFIXED_PAGE_BYTES
    ):
        raise wrong_file(
            f"the Parquet column {quoted(leaf.name)} is encoded as DELTA_BYTE_ARRAY, which may "
            "take any amount of memory here; write the file with the encoding PLAIN"
        )


def _page_at(stream: BinaryIO, position: int) -> _Page:
    size = 1 << 9
    while True:
        stream.seek(position)
        header = stream.read(size)
        try:
            return _page(*read_struct(header))
        except TooShort:
            if len(header) < size or size > _MAX_HEADER_BYTES:
                raise ValueError(f"there is no page at byte {position:,}") from None
            size *= 4


def _page(fields: dict[int, Any], length: int) -> _Page:
    compressed, uncompressed = fields[_COMPRESSED_BYTES], fields[_UNCOMPRESSED_BYTES]
    if compressed < 0 or uncompressed < 0:
        raise ValueError("a page has a negative size")
    num_values, encoding = 0, None
    for field, (values_field, encoding_field) in _DATA_PAGES.items():
        if field in fields:
            num_values, encoding = fields[field][values_field], fields[field][encoding_field]
    return _Page(length, compressed, uncompressed, max(0, num_values), encoding)
