"""The lease of an export, as `leases` has that of a job: claim, renew, give back.

The same rules hold: all moments are the database's, a claim bumps `lease_epoch`, and a write under
an older epoch touches no row.
"""

from sqlalchemy import Connection, func, select, update

from app.db.clock import now
from app.db.repositories import dispatch
from app.db.repositories import exports as rows
from app.db.repositories.exports import Export
from app.db.repositories.leases import Renewal
from app.db.tables import exports
from app.domain.errors import InvalidTransition, LeaseLost
from app.domain.exports import ExportStatus


def claim_next(connection: Connection, owner: str, ttl_seconds: float) -> Export | None:
    """Claim the queued export that is first in order, or None when there is none.

    The order: the project with the fewest running exports, then age.
    """
    running = (
        select(exports.c.project_id, func.count().label("count"))
        .where(exports.c.status == ExportStatus.RUNNING)
        .group_by(exports.c.project_id)
        .subquery("running")
    )
    export_id = connection.scalar(
        select(exports.c.id)
        .outerjoin(running, running.c.project_id == exports.c.project_id)
        .where(exports.c.status == ExportStatus.QUEUED)
        .order_by(func.coalesce(running.c.count, 0), exports.c.created_at, exports.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=exports)
    )
    if export_id is None:
        return None
    try:
        return rows.transition(
            connection,
            export_id,
            ExportStatus.RUNNING,
            source=ExportStatus.QUEUED,
            lease_epoch=exports.c.lease_epoch + 1,
            lease_owner=owner,
            lease_expires_at=now() + ttl_seconds,
            attempts=exports.c.attempts + 1,
            started_at=func.coalesce(exports.c.started_at, now()),
        )
    except InvalidTransition:
        return None  # Cancelled between the two statements.


def renew(connection: Connection, export_id: str, epoch: int, ttl_seconds: float) -> Renewal:
    """Extend a live lease.

    Raises:
        LeaseLost: it expired, was taken over, or the export ended.
    """
    row = connection.execute(
        update(exports)
        .where(
            exports.c.id == export_id,
            exports.c.lease_epoch == epoch,
            exports.c.status == ExportStatus.RUNNING,
            exports.c.lease_expires_at > now(),
        )
        .values(lease_expires_at=now() + ttl_seconds)
        .returning(exports.c.id)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"attempt {epoch} of {export_id} no longer holds the lease")
    return Renewal(pause_requested=False)


def give_back(connection: Connection, export_id: str, epoch: int, *, counts: bool = True) -> Export:
    """Queue an export again whose attempt ended before it.

    Args:
        counts: as an attempt; one that a shutdown or a full disk ended does not.

    Raises:
        LeaseLost: another attempt holds it, or it ended; nothing was written.
    """
    return rows.transition(
        connection,
        export_id,
        ExportStatus.QUEUED,
        epoch=epoch,
        attempts=exports.c.attempts - (0 if counts else 1),
        lease_owner=None,
        lease_expires_at=None,
        dispatched_at=None,
    )


def lose(connection: Connection, export: Export, max_attempts: int, cause: str) -> Export:
    """End an attempt whose worker or process was lost: queue the export again, or fail it.

    Args:
        cause: for people, how it was lost.

    Raises:
        LeaseLost: another attempt holds it, or it ended; nothing was written.
    """
    if export.attempts < max_attempts:
        return give_back(connection, export.id, export.lease_epoch)
    message = f"{cause}; it was tried {export.attempts} times, and the limit is {max_attempts}."
    return rows.transition(
        connection,
        export.id,
        ExportStatus.FAILED,
        epoch=export.lease_epoch,
        error={"code": "worker_lost", "message": message, "param": None},
        finished_at=now(),
        lease_expires_at=None,
    )


def list_expired(connection: Connection, limit: int) -> list[Export]:
    """Return running exports whose worker has fallen silent."""
    found = connection.execute(
        select(exports)
        .where(exports.c.status == ExportStatus.RUNNING, exports.c.lease_expires_at <= now())
        .limit(limit)
    )
    return [rows.from_row(row) for row in found]


def list_undispatched(
    connection: Connection, redispatch_after_seconds: float, limit: int
) -> list[str]:
    """Return queued exports for which no message was sent, or none that led to a claim."""
    found = connection.scalars(
        select(exports.c.id)
        .where(
            exports.c.status == ExportStatus.QUEUED,
            dispatch.needs_message(exports, redispatch_after_seconds),
        )
        .order_by(exports.c.created_at)
        .limit(limit)
    )
    return list(found)


def mark_dispatched(connection: Connection, export_ids: list[str], *, is_sent: bool) -> None:
    """Note that there is a message for each export; see `dispatch.mark_dispatched`."""
    dispatch.mark_dispatched(connection, exports, export_ids, is_sent=is_sent)
