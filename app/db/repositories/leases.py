"""The lease of a job: claim, renew, and every write of an attempt, guarded by its epoch.

All moments are the database's. A claim bumps `lease_epoch`; whoever still carries an older epoch
finds that its writes touch no row, and is told so by `LeaseLost`.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Update, or_, select, update

from app.db.clock import now
from app.db.repositories import jobs as job_rows
from app.db.repositories.jobs import Job
from app.db.tables import jobs
from app.domain.errors import InvalidTransition, LeaseLost
from app.domain.job_state import JobStatus

# A column value: a graceful release does not count as an attempt.
ONE_ATTEMPT_LESS = jobs.c.attempts - 1


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat brings back."""

    pause_requested: bool


def claim_next(connection: Connection, owner: str, ttl_seconds: float) -> Job | None:
    """Claim the queued job that is first in order, or None when there is none.

    The order is decided here and not by the broker: priority, then age.
    """
    job_id = connection.scalar(
        select(jobs.c.id)
        .where(jobs.c.status == JobStatus.QUEUED)
        .order_by(jobs.c.priority.desc(), jobs.c.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job_id is None:
        return None
    try:
        return job_rows.transition(
            connection,
            job_id,
            JobStatus.RUNNING,
            message="Fine-tuning job started",
            lease_epoch=jobs.c.lease_epoch + 1,
            lease_owner=owner,
            lease_expires_at=now() + ttl_seconds,
            attempts=jobs.c.attempts + 1,
            started_at=now(),
        )
    except InvalidTransition:
        return None  # Cancelled between the two statements.


def renew(connection: Connection, job_id: str, epoch: int, ttl_seconds: float) -> Renewal:
    """Extend a live lease.

    Raises:
        LeaseLost: it expired, was taken over, or the job ended.
    """
    row = connection.execute(
        _under_lease(job_id, epoch)
        .where(jobs.c.lease_expires_at > now())
        .values(lease_expires_at=now() + ttl_seconds)
        .returning(jobs.c.pause_requested)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"attempt {epoch} of job {job_id} no longer holds the lease")
    return Renewal(pause_requested=row.pause_requested)


def write(connection: Connection, job_id: str, epoch: int, **fields: Any) -> None:
    """Write columns of a job under its lease; with none, only check that it is held.

    Raises:
        LeaseLost: another attempt holds the job, or it ended; nothing was written.
    """
    # Writing the epoch over itself takes the row's lock, which a mere look would not.
    fields = fields or {"lease_epoch": epoch}
    result = connection.execute(_under_lease(job_id, epoch).values(**fields))
    if result.rowcount == 0:
        raise LeaseLost(f"attempt {epoch} of job {job_id} no longer holds the lease")


def list_expired(connection: Connection, limit: int) -> list[Job]:
    """Return running jobs whose worker has fallen silent."""
    rows = connection.execute(
        select(jobs)
        .where(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at <= now())
        .limit(limit)
    )
    return [job_rows.from_row(row) for row in rows]


def list_undispatched(
    connection: Connection, redispatch_after_seconds: float, limit: int
) -> list[str]:
    """Return queued jobs for which no message was sent, or none that led to a claim."""
    rows = connection.execute(
        select(jobs.c.id)
        .where(
            jobs.c.status == JobStatus.QUEUED,
            or_(
                jobs.c.dispatched_at.is_(None),
                jobs.c.dispatched_at <= now() - redispatch_after_seconds,
            ),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.created_at)
        .limit(limit)
    )
    return [row.id for row in rows]


def mark_dispatched(connection: Connection, job_ids: list[str]) -> None:
    connection.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(dispatched_at=now()))


def _under_lease(job_id: str, epoch: int) -> Update:
    return update(jobs).where(
        jobs.c.id == job_id,
        jobs.c.lease_epoch == epoch,
        jobs.c.status == JobStatus.RUNNING,
    )
