"""The lease of a job: claim, renew, and every write of an attempt, guarded by its epoch.

All moments are the database's. A claim bumps `lease_epoch`; whoever still carries an older epoch
finds that its writes touch no row, and is told so by `LeaseLost`.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Update, func, select, update

from app.db.clock import now
from app.db.repositories import dispatch, events
from app.db.repositories import jobs as job_rows
from app.db.repositories.jobs import Job
from app.db.tables import jobs, projects
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

    The order is decided here and not by the broker: priority; jobs under way before new ones; the
    project with the fewest running jobs, and of those the one that was served longest ago; age.
    """
    running = (
        select(jobs.c.project_id, func.count().label("count"))
        .where(jobs.c.status == JobStatus.RUNNING)
        .group_by(jobs.c.project_id)
        .subquery("running")
    )
    job_id = connection.scalar(
        select(jobs.c.id)
        .join(projects)
        .outerjoin(running, running.c.project_id == jobs.c.project_id)
        .where(jobs.c.status == JobStatus.QUEUED)
        .order_by(
            jobs.c.priority.desc(),
            jobs.c.started_at.is_(None),
            func.coalesce(running.c.count, 0),
            func.coalesce(projects.c.served_at, 0),
            jobs.c.created_at,
            jobs.c.id,
        )
        .limit(1)
        .with_for_update(skip_locked=True, of=jobs)
    )
    if job_id is None:
        return None
    try:
        job = job_rows.transition(
            connection,
            job_id,
            JobStatus.RUNNING,
            message="Fine-tuning job started",
            source=JobStatus.QUEUED,
            lease_epoch=jobs.c.lease_epoch + 1,
            lease_owner=owner,
            lease_expires_at=now() + ttl_seconds,
            attempts=jobs.c.attempts + 1,
            started_at=now(),
        )
    except InvalidTransition:
        return None  # Cancelled between the two statements.
    connection.execute(
        update(projects).where(projects.c.id == job.project_id).values(served_at=now())
    )
    return job


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


def write(connection: Connection, job_id: str, epoch: int, **fields: Any) -> Job:
    """Write columns of a job under its lease; with none, only check that it is held.

    Raises:
        LeaseLost: another attempt holds the job, or it ended; nothing was written.
    """
    # Writing the epoch over itself takes the row's lock, which a mere look would not.
    fields = fields or {"lease_epoch": epoch}
    row = connection.execute(
        _under_lease(job_id, epoch).values(**fields).returning(jobs)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"attempt {epoch} of job {job_id} no longer holds the lease")
    return job_rows.from_row(row)


def write_checkpoint(
    connection: Connection, job_id: str, epoch: int, prefix: str, step: int
) -> Job:
    """Make a checkpoint the one to resume from; the one before becomes what to fall back to.

    Raises:
        LeaseLost: another attempt holds the job, or it ended; nothing was written.
    """
    job = write(connection, job_id, epoch)
    if job.resume_prefix == prefix:
        return job
    return write(
        connection,
        job_id,
        epoch,
        resume_prefix=prefix,
        resume_step=step,
        fallback_prefix=job.resume_prefix,
        fallback_step=job.resume_step,
    )


def fall_back(connection: Connection, job_id: str, epoch: int) -> Job:
    """Resume from the checkpoint before, or from the start: the newest one is damaged.

    Raises:
        LeaseLost: another attempt holds the job, or it ended; nothing was written.
    """
    job = write(connection, job_id, epoch)
    return write(
        connection,
        job_id,
        epoch,
        resume_prefix=job.fallback_prefix,
        resume_step=job.fallback_step,
        fallback_prefix=None,
        fallback_step=None,
    )


def give_back(
    connection: Connection,
    job_id: str,
    epoch: int,
    reason: str,
    *,
    level: events.Level,
    **fields: Any,
) -> Job:
    """End an attempt before its job has ended: the job is queued again, or paused if that is due.

    Args:
        reason: how the event that tells of it begins.
        fields: further columns to write.

    Raises:
        LeaseLost: another attempt holds the job, or it ended; nothing was written.
    """
    job = write(connection, job_id, epoch, **fields)
    to, outcome = JobStatus.QUEUED, "job queued again"
    if job.pause_requested:
        to, outcome = JobStatus.PAUSED, "job paused"
    where = f" at step {job.resume_step}" if job.resume_step else ""
    return job_rows.transition(
        connection,
        job_id,
        to,
        message=f"{reason}: {outcome}{where}",
        level=level,
        epoch=epoch,
        estimated_finish=None,
        lease_owner=None,
        lease_expires_at=None,
        dispatched_at=None,
    )


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
            dispatch.needs_message(jobs, redispatch_after_seconds),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.created_at)
        .limit(limit)
    )
    return [row.id for row in rows]


def mark_dispatched(connection: Connection, job_ids: list[str], *, is_sent: bool = True) -> None:
    """Note that there is a message for each job; see `dispatch.mark_dispatched`."""
    dispatch.mark_dispatched(connection, jobs, job_ids, is_sent=is_sent)


def _under_lease(job_id: str, epoch: int) -> Update:
    return update(jobs).where(
        jobs.c.id == job_id,
        jobs.c.lease_epoch == epoch,
        jobs.c.status == JobStatus.RUNNING,
    )
