"""Batches, as their users see them; whoever works on one writes through `batch_leases`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import batches
from app.domain.batches import CANCELLABLE, LIVE, TERMINAL, WINDOW_SECONDS, BatchError, BatchStatus
from app.domain.errors import InvalidTransition, NotFound
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, as it is stored.

    Attributes:
        model: what all lines name, if they all name the same.
        errors: what is wrong with the input.
        line_count: requests in the input; 0 before it was validated.
    """

    id: str
    project_id: str
    status: BatchStatus
    endpoint: str
    completion_window: str
    input_file_id: str
    output_expires_after_seconds: int | None
    metadata: dict[str, str] | None
    created_at: float
    expires_at: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    failed_at: float | None
    model: str | None
    errors: Sequence[BatchError] | None
    line_count: int
    completed_lines: int
    failed_lines: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    output_file_id: str | None
    error_file_id: str | None
    lease_epoch: int
    lease_owner: str | None
    lease_expires_at: float | None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch needs at birth; it is validating from then on."""

    project_id: str
    endpoint: str
    completion_window: str
    input_file_id: str
    output_expires_after_seconds: int | None
    metadata: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Batches that have not ended, and requests of them that are not answered."""

    batches: int
    requests: int


def add(connection: Connection, batch: NewBatch) -> Batch:
    row = connection.execute(
        insert(batches)
        .values(
            id=new_id("batch_"),
            project_id=batch.project_id,
            status=BatchStatus.VALIDATING,
            endpoint=batch.endpoint,
            completion_window=batch.completion_window,
            input_file_id=batch.input_file_id,
            output_expires_after_seconds=batch.output_expires_after_seconds,
            metadata=batch.metadata,
            created_at=now(),
            expires_at=now() + WINDOW_SECONDS,
        )
        .returning(batches)
    ).one()
    return from_row(row)


def get(connection: Connection, project_id: str, batch_id: str) -> Batch:
    """Return a batch of the project. Raises: NotFound."""
    row = connection.execute(
        select(batches).where(batches.c.id == batch_id, batches.c.project_id == project_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"No batch found with id {batch_id!r}.", param="batch_id")
    return from_row(row)


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> Page[Batch]:
    """Return the project's batches, newest first."""
    query = select(batches).where(batches.c.project_id == project_id)
    keys = ("created_at", "id")
    page = fetch_page(connection, batches, query, keys=keys, after=after, limit=limit)
    return Page([from_row(row) for row in page.items], page.has_more)


def cancel(connection: Connection, project_id: str, batch_id: str) -> Batch:
    """Let a batch be cancelled by whoever works on it; one that is being cancelled stays so.

    Raises:
        NotFound: no such batch in this project.
        InvalidTransition: it has ended, or all its lines are answered.
    """
    row = connection.execute(
        update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.project_id == project_id,
            batches.c.status.in_(sorted(CANCELLABLE)),
        )
        .values(status=BatchStatus.CANCELLING, cancelling_at=now())
        .returning(batches)
    ).one_or_none()
    if row is not None:
        return from_row(row)
    batch = get(connection, project_id, batch_id)
    if batch.status is not BatchStatus.CANCELLING:
        raise InvalidTransition(
            f"Cannot cancel a batch with status {batch.status.value!r}.",
            code="invalid_batch_state",
        )
    return batch


def list_unended(connection: Connection, batch_ids: Sequence[str]) -> set[str]:
    """Return those of the ids whose batch has not ended."""
    return set(
        connection.scalars(
            select(batches.c.id).where(
                batches.c.id.in_(batch_ids), batches.c.status.not_in(sorted(TERMINAL))
            )
        )
    )


def backlog(connection: Connection) -> Backlog:
    """Return what is left to do of all batches of the installation."""
    unanswered = batches.c.line_count - batches.c.completed_lines - batches.c.failed_lines
    query = select(func.count(), func.coalesce(func.sum(unanswered), 0))
    count, requests = connection.execute(
        query.where(batches.c.status.not_in(sorted(TERMINAL)))
    ).one()
    return Backlog(count, requests)


def count_forgotten(connection: Connection, after_seconds: float) -> int:
    """Return how many batches nobody works on, for so long, though they wait for no turn.

    One whose requests may be asked can wait for others of its project: only a lease that has
    expired tells that somebody was at work on it, and is no more.
    """
    long_ago = now() - after_seconds
    is_new = and_(
        batches.c.status == BatchStatus.VALIDATING,
        batches.c.lease_expires_at.is_(None),
        batches.c.created_at <= long_ago,
    )
    query = select(func.count()).where(
        batches.c.status.in_(sorted(LIVE)), or_(batches.c.lease_expires_at <= long_ago, is_new)
    )
    return connection.execute(query).scalar_one()


def from_row(row: Any) -> Batch:
    values = dict(row._mapping)
    values["status"] = BatchStatus(values["status"])
    if values["errors"] is not None:
        values["errors"] = [BatchError(**one) for one in values["errors"]]
    return Batch(**values)
