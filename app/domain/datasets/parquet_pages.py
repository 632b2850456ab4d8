"""What the pages of a Parquet file unpack to, checked before any is unpacked.

A page is unpacked whole, so that a file of some kilobytes could fill the memory. What it takes is
in its header, in Thrift's compact protocol; the file's own summary of it may say anything.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

from app.domain.datasets.faults import wrong_file

# A page may be large if it is so in the file, as one of images is.
_MAX_PAGE_BYTES = 64 << 20
_MAX_EXPANSION = 8
# Prefixes shared between values, and lists of the same value, unpack to far more than a page.
_MAX_PREFIXED_PAGE_BYTES = 4 << 20
_MAX_LISTED_VALUES = 128 << 20
_MAX_PAGES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20

_DELTA_BYTE_ARRAY = 7
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3
# Fields of the header of each kind of page, and in these of the number of values and encoding.
_DATA_PAGES = {5: (1, 2), 8: (1, 4)}


@dataclass(frozen=True, slots=True)
class _Page:
    header_bytes: int
    compressed_bytes: int
    uncompressed_bytes: int
    num_values: int
    encoding: int | None


def check_pages(stream: BinaryIO, metadata: Any) -> None:
    """Walk over the headers of all pages, and leave the stream at its beginning.

    Args:
        metadata: pyarrow's FileMetaData.

    Raises:
        InvalidFile: a page would take too much memory, or is damaged.
    """
    pages_left = _MAX_PAGES
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            is_listed = metadata.schema.column(index).max_repetition_level > 0
            pages_left = _check_chunk(stream, chunk, is_listed, pages_left)
    stream.seek(0)


def _check_chunk(stream: BinaryIO, chunk: Any, is_listed: bool, pages_left: int) -> int:
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
        position = chunk.dictionary_page_offset
    end = position + chunk.total_compressed_size
    num_values = 0
    while position < end:
        page = _page_at(stream, position)
        position += page.header_bytes + page.compressed_bytes
        num_values += page.num_values
        pages_left -= 1
        column = chunk.path_in_schema
        if page.uncompressed_bytes > max(_MAX_PAGE_BYTES, _MAX_EXPANSION * page.compressed_bytes):
            raise wrong_file(
                f"a page of the Parquet column {column!r} unpacks from {page.compressed_bytes:,} "
                f"to {page.uncompressed_bytes:,} bytes; write the file with smaller row groups"
            )
        if page.encoding == _DELTA_BYTE_ARRAY and (
            is_listed or page.uncompressed_bytes > _MAX_PREFIXED_PAGE_BYTES
        ):
            raise wrong_file(
                f"the Parquet column {column!r} is encoded as DELTA_BYTE_ARRAY, which may take "
                "any amount of memory here; write the file with the encoding PLAIN"
            )
        if is_listed and num_values > _MAX_LISTED_VALUES:
            raise wrong_file(
                f"a row group of the Parquet column {column!r} has more than "
                f"{_MAX_LISTED_VALUES:,} values; write the file with smaller row groups"
            )
        if pages_left < 0:
            raise wrong_file(f"the Parquet file has more than {_MAX_PAGES:,} pages")
    return pages_left


def _page_at(stream: BinaryIO, position: int) -> _Page:
    size = 1 << 9
    while size <= _MAX_HEADER_BYTES:
        if position < 0:
            break
        stream.seek(position)
        header = stream.read(size)
        try:
            fields, length = _struct(header, 0, levels=8)
            return _page(fields, length)
        except IndexError:
            if len(header) < size:
                break
            size *= 4
        except (ValueError, KeyError):
            break
    raise wrong_file(f"the Parquet file is damaged: there is no page at byte {position:,}")


def _page(fields: dict[int, Any], length: int) -> _Page:
    compressed, uncompressed = fields[_COMPRESSED_SIZE], fields[_UNCOMPRESSED_SIZE]
    if compressed < 0 or uncompressed < 0:
        raise ValueError
    num_values, encoding = 0, None
    for field, (values_field, encoding_field) in _DATA_PAGES.items():
        if field in fields:
            num_values, encoding = fields[field][values_field], fields[field][encoding_field]
    return _Page(length, compressed, uncompressed, max(0, num_values), encoding)


# Thrift's compact protocol. Each function returns a value and the position after it; beyond the
# end of what was read they raise IndexError.


def _struct(buffer: bytes, at: int, levels: int) -> tuple[dict[int, Any], int]:
    if levels == 0:
        raise ValueError
    fields: dict[int, Any] = {}
    field = 0
    while head := buffer[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(buffer, at)
        fields[field], at = _value(buffer, at, head & 15, levels)
    return fields, at + 1


def _value(buffer: bytes, at: int, type_: int, levels: int) -> tuple[Any, int]:
    if type_ in (1, 2):  # A boolean, which is its own type.
        return type_ == 1, at
    if type_ == 3:
        return buffer[at], at + 1
    if type_ in (4, 5, 6):
        return _integer(buffer, at)
    if type_ == 7:
        return None, at + 8
    if type_ == 8:
        length, at = _varint(buffer, at)
        return None, at + length
    if type_ in (9, 10):
        return _list(buffer, at, levels)
    if type_ == 12:
        return _struct(buffer, at, levels - 1)
    raise ValueError  # No header of a page has a map.


def _list(buffer: bytes, at: int, levels: int) -> tuple[None, int]:
    head = buffer[at]
    at += 1
    length = head >> 4
    if length == 15:
        length, at = _varint(buffer, at)
    for _ in range(length):
        if head & 15 in (1, 2):
            at += 1
        else:
            _, at = _value(buffer, at, head & 15, levels)
        if at > len(buffer):
            raise IndexError
    return None, at


def _integer(buffer: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(buffer, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError
