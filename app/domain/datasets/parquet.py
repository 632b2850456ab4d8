"""Parquet: named columns as in CSV, with types of their own, read a few rows at a time.

This module is loaded by name, on the first Parquet file: pyarrow takes its time and brings NumPy.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.datasets.columns import Column, check_columns, check_names, columns_of, probe, typed
from app.domain.datasets.decoding import Decoding
from app.domain.datasets.faults import WrongRecord, wrong_file
from app.domain.datasets.huggingface import class_names, named
from app.domain.datasets.limits import MAX_RECORD_BYTES
from app.domain.datasets.parquet_pages import check_pages
from app.domain.datasets.recognition import find_kind
from app.domain.datasets.records import Record

_INDEX_OF_PANDAS = re.compile(r"__index_level_\d+__")
# The memory of a batch is that of its rows; small batches cost little more.
_ROWS_A_BATCH = 32
_DAMAGED = (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError)


def read(stream: BinaryIO, decoding: Decoding) -> Iterator[tuple[int, Record]]:
    """Yield each record with its 1-based row number.

    A cell of text in a column of lists or objects is JSON, and a class is its name if the file
    says what it is.

    Raises:
        InvalidFile: naming the first row at fault and the column, or what is wrong with the file.
    """
    check_pages(stream)
    with _damage_told():
        file = pq.ParquetFile(
            stream,
            pre_buffer=False,
            buffer_size=1 << 16,
            page_checksum_verification=True,
        )
        schema = file.schema_arrow
        names = [name for name in schema.names if not _INDEX_OF_PANDAS.fullmatch(name)]
        classes = class_names(schema.metadata)
    try:
        check_names(names)
    except WrongRecord as error:
        raise wrong_file(str(error)) from None
    kind = find_kind(dict.fromkeys(names))
    max_bytes = kind.max_bytes if kind else MAX_RECORD_BYTES
    columns: list[Column] = []
    for number, row in _rows(file, names, max_bytes, decoding):
        if not columns:
            columns = _columns(number, names, row, decoding)
        try:
            _give_types(row, columns, classes)
        except WrongRecord as error:
            raise decoding.wrong(number, str(error)) from None
        yield number, decoding.row(number, row)


def _columns(
    number: int, names: Sequence[str], row: dict[str, Any], decoding: Decoding
) -> list[Column]:
    kind = decoding.recognise(number, probe(dict.fromkeys(names) | row))
    try:
        check_columns(kind, names)
    except WrongRecord as error:
        raise wrong_file(str(error)) from None
    return columns_of(kind, names)


def _give_types(
    row: dict[str, Any], columns: Sequence[Column], classes: dict[str, list[str]]
) -> None:
    for column in columns:
        value = row.get(column.name)
        if column.cell is list and isinstance(value, str):
            row[column.name] = typed(column, value)
        elif value is not None and column.name in classes:
            row[column.name] = named(value, classes[column.name])


def _rows(
    file: pq.ParquetFile, names: Sequence[str], max_bytes: int, decoding: Decoding
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row without what is null, and its number."""
    number = 0
    with _damage_told():
        batches = file.iter_batches(batch_size=_ROWS_A_BATCH, columns=names, use_threads=False)
    while True:
        with _damage_told():
            batch = next(batches, None)
        if batch is None:
            return
        for row in _of_batch(batch, number, max_bytes, decoding):
            number += 1
            yield number, _without_nulls(row)


def _of_batch(
    batch: pa.RecordBatch, number: int, max_bytes: int, decoding: Decoding
) -> Iterator[dict[str, Any]]:
    is_large = _size(batch) > max_bytes
    for index in range(batch.num_rows):
        number += 1
        one = batch.slice(index, 1)
        if is_large and (size := _size(one)) > max_bytes:
            raise decoding.wrong(
                number, f"the row holds {size:,} bytes; at most {max_bytes:,} may be"
            )
        try:
            (row,) = one.to_pylist()
        except UnicodeDecodeError:
            raise decoding.wrong(number, "text that is not valid UTF-8") from None
        except _DAMAGED as error:
            raise decoding.wrong(number, f"not readable: {error}") from None
        yield row


def _size(batch: pa.RecordBatch) -> int:
    # A column of categories holds them all, whichever of them its rows have.
    return sum(
        (column.indices if pa.types.is_dictionary(column.type) else column).nbytes
        for column in batch.columns
    )


def _without_nulls(value: Any) -> Any:
    """Return a value without the fields of objects that are null: a column has them for all."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # An error of the disk has a number; pyarrow's about a damaged file have none.
        if error.errno is not None:
            raise
        raise wrong_file(f"the Parquet file is damaged: {error}") from None
    except _DAMAGED as error:
        raise wrong_file(f"the Parquet file is damaged: {error}") from None
