"""Bringing a batch to its end: its answers become one file, its errors another."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache

from app.db.repositories import batch_chunks, batch_leases, files
from app.db.repositories.batch_chunks import StoredChunk
from app.db.repositories.batches import Batch
from app.db.repositories.files import NewFile
from app.domain.batches import BatchStatus
from app.domain.errors import LeaseLost
from app.resources import Resources
from app.services.batches.holding import Hold
from app.services.batches.ledger import prefix_of
from app.services.batches.reading import custom_id_of, open_input, read_lines
from app.services.batches.results import Result, unanswered, unpack
from app.services.files import BATCH_OUTPUT, store_made
from app.storage import Storage

# Chunks overlap in line numbers by what was asked at once, so few are needed at a time.
CHUNKS_IN_MEMORY = 8

_WHY_UNANSWERED = {
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "The batch was cancelled before this request was answered.",
    ),
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be answered before the completion window ended.",
    ),
}


def end(resources: Resources, hold: Hold, batch: Batch) -> None:
    """Bring a batch from `finalizing` or `cancelling` to its end.

    Raises:
        NotFound: content that it needs is gone.
        StorageFull: its files cannot be stored now.
        LeaseLost: another holds the batch; its files will be the other's.
    """
    with resources.database.read() as connection:
        chunks = batch_chunks.list_of_batch(connection, batch.id)
    missing = batch.line_count - sum(len(chunk.lines) for chunk in chunks)
    outcome = _outcome(batch, missing)
    failed = batch.failed_lines + missing

    def answers() -> Iterator[Result]:
        return (one for one in _stored(resources.storage, chunks, hold.check) if not one.is_error)

    def errors() -> Iterator[Result]:
        if missing:
            every = _with_unanswered(resources, batch, chunks, outcome, hold.check)
        else:
            every = _stored(resources.storage, chunks, hold.check)
        return (one for one in every if one.is_error)

    output = _store(resources.storage, batch, "output", answers) if batch.completed_lines else None
    error = _store(resources.storage, batch, "error", errors) if failed > 0 else None
    made = [file for file in (output, error) if file is not None]
    try:
        with resources.database.write() as connection:
            batch_leases.move(
                connection,
                batch.id,
                hold.epoch,
                batch.status,
                outcome,
                failed_lines=failed,
                output_file_id=output.id if output else None,
                error_file_id=error.id if error else None,
            )
            for file in made:
                files.add(connection, file)
    except LeaseLost:
        for file in made:
            resources.storage.delete(file.storage_key)
        raise
    resources.storage.delete(prefix_of(batch.id))


def _outcome(batch: Batch, missing: int) -> BatchStatus:
    if batch.status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if missing else BatchStatus.COMPLETED


def _store(
    storage: Storage, batch: Batch, name: str, results: Callable[[], Iterator[Result]]
) -> NewFile:
    return store_made(
        storage,
        project_id=batch.project_id,
        purpose=BATCH_OUTPUT,
        filename=f"{batch.id}_{name}.jsonl",
        chunks=(one.text + b"\n" for one in results()),
        expires_after_seconds=batch.output_expires_after_seconds,
    )


def _stored(
    storage: Storage, chunks: list[StoredChunk], check: Callable[[], None]
) -> Iterator[Result]:
    """Yield every stored result in the order of the input."""
    find = _finder(storage, chunks)
    for number in sorted(number for chunk in chunks for number in chunk.lines):
        check()
        if (result := find(number)) is not None:
            yield result


def _with_unanswered(
    resources: Resources,
    batch: Batch,
    chunks: list[StoredChunk],
    outcome: BatchStatus,
    check: Callable[[], None],
) -> Iterator[Result]:
    """Yield a result for every line of the input, in its order."""
    find = _finder(resources.storage, chunks)
    with closing(open_input(resources, batch)) as stream:
        for number, raw in read_lines(stream):
            check()
            stored = find(number)
            yield stored or unanswered(number, custom_id_of(raw), *_WHY_UNANSWERED[outcome])


def _finder(storage: Storage, chunks: list[StoredChunk]) -> Callable[[int], Result | None]:
    keys = {number: chunk.storage_key for chunk in chunks for number in chunk.lines}

    @lru_cache(maxsize=CHUNKS_IN_MEMORY)
    def load(key: str) -> dict[int, Result]:
        with closing(storage.open(key)) as stream:
            return unpack(stream.read())

    return lambda number: load(keys[number])[number] if number in keys else None
