"""Answers of batches that have not ended, by the chunk of storage that holds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from app.db.repositories.batch_leases import Standing, renew, under_lease
from app.db.tables import batch_chunks, batches


@dataclass(frozen=True, slots=True)
class Chunk:
    """Answers that are stored together: where, of which lines, and what they add to the counts."""

    number: int
    storage_key: str
    lines: Sequence[int]
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """The row of answers that are stored."""

    number: int
    storage_key: str
    lines: Sequence[int]


def add(
    connection: Connection, batch_id: str, epoch: int, chunk: Chunk, ttl_seconds: float
) -> Standing:
    """Make the lines of a chunk count as done; once only, however often it is tried.

    Raises:
        LeaseLost: another holds the batch, or it has ended; nothing was written.
    """
    # First, for the row's lock: of two that try, the second sees what the first has written.
    standing = renew(connection, batch_id, epoch, ttl_seconds)
    key = connection.scalar(
        select(batch_chunks.c.storage_key).where(
            batch_chunks.c.batch_id == batch_id, batch_chunks.c.number == chunk.number
        )
    )
    if key == chunk.storage_key:
        return standing
    connection.execute(
        insert(batch_chunks).values(
            batch_id=batch_id,
            number=chunk.number,
            storage_key=chunk.storage_key,
            lines=list(chunk.lines),
        )
    )
    connection.execute(
        update(batches)
        .where(*under_lease(batch_id, epoch))
        .values(
            completed_lines=batches.c.completed_lines + chunk.completed,
            failed_lines=batches.c.failed_lines + chunk.failed,
            input_tokens=batches.c.input_tokens + chunk.input_tokens,
            cached_tokens=batches.c.cached_tokens + chunk.cached_tokens,
            output_tokens=batches.c.output_tokens + chunk.output_tokens,
            reasoning_tokens=batches.c.reasoning_tokens + chunk.reasoning_tokens,
        )
    )
    return standing


def list_of_batch(connection: Connection, batch_id: str) -> list[StoredChunk]:
    """Return the answers that count, in the order in which they were stored."""
    query = select(batch_chunks).where(batch_chunks.c.batch_id == batch_id)
    return [
        StoredChunk(row.number, row.storage_key, row.lines)
        for row in connection.execute(query.order_by(batch_chunks.c.number))
    ]
