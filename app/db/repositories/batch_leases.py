"""The lease of a batch: claim, renew, and every write of whoever works on it, guarded by its epoch.

As with jobs (`leases`), a claim bumps `lease_epoch`; whoever carries an older one finds that its
writes touch no row. All moments are the database's.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from app.db.clock import now
from app.db.repositories.batches import Batch, from_row
from app.db.tables import batch_chunks, batches
from app.domain.batches import LIVE, TERMINAL, BatchError, BatchStatus, may_move
from app.domain.errors import InvalidTransition, LeaseLost


@dataclass(frozen=True, slots=True)
class Standing:
    """How a batch stands while it is worked on."""

    status: BatchStatus
    is_expired: bool


def has_claimable(connection: Connection, busy_projects: Collection[str] | None) -> bool:
    """Say whether `claim_next` would find one, without a lock."""
    query = select(batches.c.id).where(*_claimable(busy_projects)).limit(1)
    return connection.scalar(query) is not None


def claim_next(
    connection: Connection, owner: str, ttl_seconds: float, busy_projects: Collection[str] | None
) -> Batch | None:
    """Claim the batch that is first in order, or None when there is none.

    First what takes but a moment: checking an input, and ending. Then the batch whose project has
    the fewest under way, and of those the oldest.

    Args:
        busy_projects: those of which the caller has lines under way, and asks no others; None if
            it asks no others of any project.
    """
    held = (
        select(batches.c.project_id, func.count().label("count"))
        .where(batches.c.status == BatchStatus.IN_PROGRESS, batches.c.lease_expires_at > now())
        .group_by(batches.c.project_id)
        .subquery("held")
    )
    batch_id = connection.scalar(
        select(batches.c.id)
        .outerjoin(held, held.c.project_id == batches.c.project_id)
        .where(*_claimable(busy_projects))
        .order_by(
            batches.c.status == BatchStatus.IN_PROGRESS,
            func.coalesce(held.c.count, 0),
            batches.c.created_at,
            batches.c.id,
        )
        .limit(1)
        .with_for_update(skip_locked=True, of=batches)
    )
    if batch_id is None:
        return None
    row = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status.in_(sorted(LIVE)))
        .values(
            lease_epoch=batches.c.lease_epoch + 1,
            lease_owner=owner,
            lease_expires_at=now() + ttl_seconds,
        )
        .returning(batches)
    ).one_or_none()
    return from_row(row) if row else None


def look(connection: Connection, batch_id: str, epoch: int) -> Standing:
    """Return how a held batch stands. Raises: LeaseLost."""
    query = select(batches.c.status, _is_expired()).where(*under_lease(batch_id, epoch))
    return _standing(connection.execute(query).one_or_none(), batch_id, epoch)


def renew(connection: Connection, batch_id: str, epoch: int, ttl_seconds: float) -> Standing:
    """Extend the lease, even one that has expired if nobody took it over. Raises: LeaseLost."""
    row = connection.execute(
        update(batches)
        .where(*under_lease(batch_id, epoch))
        .values(lease_expires_at=now() + ttl_seconds)
        .returning(batches.c.status, _is_expired())
    ).one_or_none()
    return _standing(row, batch_id, epoch)


def move(
    connection: Connection,
    batch_id: str,
    epoch: int,
    source: BatchStatus,
    to: BatchStatus,
    *,
    keep_lease: bool = False,
    **fields: Any,
) -> Batch:
    """Bring a held batch to its next status; the only writer of one beside `batches.cancel`.

    Args:
        keep_lease: go on holding it.
        fields: further columns to write.

    Raises:
        LeaseLost: another holds the batch, or its status is another by now; nothing was written.
        InvalidTransition: there is no such move.
    """
    if not may_move(source, to):
        raise InvalidTransition(f"a batch cannot go from {source.value} to {to.value}")
    if not keep_lease:
        fields |= {"lease_owner": None, "lease_expires_at": None}
    row = connection.execute(
        update(batches)
        .where(*under_lease(batch_id, epoch), batches.c.status == source)
        .values({"status": to, f"{to.value}_at": now()} | fields)
        .returning(batches)
    ).one_or_none()
    if row is None:
        raise _lost(batch_id, epoch)
    if to in TERMINAL:
        connection.execute(delete(batch_chunks).where(batch_chunks.c.batch_id == batch_id))
    return from_row(row)


def fail(
    connection: Connection,
    batch_id: str,
    epoch: int,
    source: BatchStatus,
    errors: Sequence[BatchError],
) -> Batch:
    """End a batch that cannot be worked on. Raises: LeaseLost."""
    told = [asdict(error) for error in errors]
    return move(connection, batch_id, epoch, source, BatchStatus.FAILED, errors=told)


def give_back(
    connection: Connection, batch_id: str, epoch: int, *, after_seconds: float = 0
) -> None:
    """Let others claim the batch, now or a little later; nothing happens if they have."""
    connection.execute(
        update(batches)
        .where(*under_lease(batch_id, epoch))
        .values(
            lease_owner=None,
            lease_expires_at=now() + after_seconds if after_seconds else None,
        )
    )


def under_lease(batch_id: str, epoch: int) -> list[ColumnElement[bool]]:
    """Return the conditions of every write of a holder."""
    return [
        batches.c.id == batch_id,
        batches.c.lease_epoch == epoch,
        batches.c.status.in_(sorted(LIVE)),
    ]


def _claimable(busy_projects: Collection[str] | None) -> list[ColumnElement[bool]]:
    takes_a_moment = or_(batches.c.status != BatchStatus.IN_PROGRESS, batches.c.expires_at <= now())
    if busy_projects is not None:
        takes_a_moment |= batches.c.project_id.not_in(sorted(busy_projects))
    return [
        batches.c.status.in_(sorted(LIVE)),
        or_(batches.c.lease_expires_at.is_(None), batches.c.lease_expires_at <= now()),
        takes_a_moment,
    ]


def _is_expired() -> ColumnElement[bool]:
    return (batches.c.expires_at <= now()).label("is_expired")


def _standing(row: Any, batch_id: str, epoch: int) -> Standing:
    if row is None:
        raise _lost(batch_id, epoch)
    return Standing(BatchStatus(row.status), bool(row.is_expired))


def _lost(batch_id: str, epoch: int) -> LeaseLost:
    return LeaseLost(f"the holder {epoch} of {batch_id} holds it no longer, or not as it was")
