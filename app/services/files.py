"""Files of a project: content first, row last; what is uploaded is checked before either."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection

from app.db.repositories import files
from app.db.repositories.files import File, NewFile
from app.domain.adapter_archive import AdapterSummary, check_adapter
from app.domain.batches import MAX_BYTES
from app.domain.datasets import DatasetSummary, check_dataset
from app.domain.errors import FileInUse, InvalidInput, StorageFull, TooLarge
from app.domain.ids import new_id
from app.storage import Storage

FINE_TUNE = "fine-tune"
ADAPTER = "adapter"
BATCH = "batch"
BATCH_OUTPUT = "batch_output"
RESULTS = "fine-tune-results"
EXPORT = "export"

_CHUNK_BYTES = 1 << 20


def store(
    storage: Storage,
    stream: BinaryIO,
    *,
    project_id: str,
    purpose: str,
    filename: str,
    max_bytes: int,
    min_free_bytes: int,
    expires_after_seconds: int | None,
) -> NewFile:
    """Check an upload and store its content; the row is the caller's to add.

    It is stored as it came, whichever format it has: trainers read it by the same code.

    Args:
        stream: seekable.
        min_free_bytes: what must still be free afterwards, so that running jobs and the database
            can go on writing.

    Raises:
        InvalidFile: the dataset or adapter is not valid; the message names the line or row at
            fault, or what is wrong with the file. Nothing was stored.
        TooLarge: nothing was stored.
        StorageFull: nothing was stored.
    """
    length = _length(stream)
    if purpose == BATCH:
        max_bytes = min(max_bytes, MAX_BYTES)
    if length > max_bytes:
        raise _too_large(max_bytes)
    _check_room(storage, length, min_free_bytes)
    summary: DatasetSummary | None = None
    if purpose == FINE_TUNE:
        summary = check_dataset(stream)
    adapter: AdapterSummary | None = None
    if purpose == ADAPTER:
        adapter = check_adapter(stream)
    stream.seek(0)
    file_id = new_id("file-")
    key = f"files/{file_id}"
    content = storage.put(key, _chunks(stream, max_bytes))
    return NewFile(
        id=file_id,
        project_id=project_id,
        purpose=purpose,
        filename=filename,
        bytes=content.bytes,
        sha256=content.sha256,
        storage_key=key,
        record_kind=summary.record_kind if summary else None,
        record_count=summary.record_count if summary else None,
        adapter=asdict(adapter) if adapter else None,
        expires_after_seconds=expires_after_seconds,
    )


def store_results(
    storage: Storage, project_id: str, contents: Mapping[str, bytes]
) -> list[NewFile]:
    """Store what a job has to show, by filename; the rows are the caller's to add."""
    return [
        store_made(
            storage, project_id=project_id, purpose=RESULTS, filename=filename, chunks=[content]
        )
        for filename, content in contents.items()
    ]


def store_made(
    storage: Storage,
    *,
    project_id: str,
    purpose: str,
    filename: str,
    chunks: Iterable[bytes],
    expires_after_seconds: int | None = None,
) -> NewFile:
    """Store a file that the service made; the row is the caller's to add.

    Raises:
        StorageFull: nothing was stored.
    """
    file_id = new_id("file-")
    key = f"files/{file_id}"
    content = storage.put(key, chunks)
    return NewFile(
        id=file_id,
        project_id=project_id,
        purpose=purpose,
        filename=filename,
        bytes=content.bytes,
        sha256=content.sha256,
        storage_key=key,
        expires_after_seconds=expires_after_seconds,
    )


def store_export(storage: Storage, project_id: str, path: Path) -> NewFile:
    """Store a file that an export has made. See `store_made`."""
    with path.open("rb") as stream:
        return store_made(
            storage,
            project_id=project_id,
            purpose=EXPORT,
            filename=path.name,
            chunks=_read(stream),
        )


def read(storage: Storage, file: File) -> Iterator[bytes]:
    """Yield the content of a file. Raises: NotFound."""
    stream = storage.open(file.storage_key)
    return _read(stream)


def remove(connection: Connection, project_id: str, file_id: str) -> File:
    """Remove the row of a file; its content is the caller's to delete after the commit.

    Raises:
        NotFound: no such file.
        FileInUse: a job, a sweep or a batch that has not ended reads it.
    """
    file = files.get(connection, project_id, file_id, param="file_id")
    if files.is_in_use(connection, file_id):
        raise FileInUse(
            f"File {file_id} is used by a fine-tuning job, a sweep or a batch that has not ended; "
            "cancel it or wait for it, then delete the file.",
            param="file_id",
        )
    files.remove(connection, project_id, file_id)
    return file


def check_purpose(purpose: str) -> None:
    """Raises: InvalidInput, naming what is accepted."""
    if purpose not in (FINE_TUNE, ADAPTER, BATCH):
        raise InvalidInput(
            f"purpose {purpose!r} is not supported; expected {FINE_TUNE!r}, {ADAPTER!r} or "
            f"{BATCH!r}",
            param="purpose",
        )


def _check_room(storage: Storage, length: int, min_free_bytes: int) -> None:
    free_bytes = storage.free_bytes()
    if free_bytes - length < min_free_bytes:
        raise StorageFull(
            f"The server is short of disk space: {free_bytes >> 20:,} MiB are free, of which "
            f"{min_free_bytes >> 20:,} MiB are kept for running jobs. Nothing was stored; try "
            "again when there is room."
        )


def _length(stream: BinaryIO) -> int:
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return length


def _chunks(stream: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    total = 0
    while chunk := stream.read(_CHUNK_BYTES):
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the file is larger than {max_bytes:,} bytes", param="file")


def _read(stream: BinaryIO) -> Iterator[bytes]:
    with closing(stream):
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
