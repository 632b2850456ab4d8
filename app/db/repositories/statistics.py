"""What an operator asks of the whole installation: what waits how long, what names content."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, literal, select, union_all

from app.db.clock import now
from app.db.tables import adapters, batch_chunks, events, files, jobs
from app.domain.job_state import TERMINAL, JobStatus

_Moment = ColumnElement[float]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs that wait for the same thing: how many, and which for longest; zeros if none do."""

    count: int = 0
    oldest_seconds: float = 0.0
    oldest_job: str | None = None


@dataclass(frozen=True, slots=True)
class ContentName:
    """A row that stands for content in storage."""

    owner: str
    storage_key: str


def count_jobs(connection: Connection) -> dict[JobStatus, int]:
    """Return how many jobs are in each status; every status is there."""
    rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return dict.fromkeys(JobStatus, 0) | {JobStatus(status): count for status, count in rows}


def expired_leases(connection: Connection) -> Backlog:
    """Return the running jobs whose worker fell silent, since their lease expired."""
    return _backlog(
        connection,
        jobs.c.lease_expires_at,
        jobs.c.status == JobStatus.RUNNING,
        jobs.c.lease_expires_at <= now(),
    )


def count_held(connection: Connection) -> int:
    """Return how many running jobs a worker holds by a lease that has not expired."""
    query = select(func.count()).where(
        jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at > now()
    )
    return connection.execute(query).scalar_one()


def without_lease(connection: Connection) -> Backlog:
    """Return the running jobs that nobody holds and whose lease can therefore never expire."""
    return _backlog(
        connection,
        _last_event(),
        jobs.c.status == JobStatus.RUNNING,
        jobs.c.lease_expires_at.is_(None),
    )


def undispatched(connection: Connection) -> Backlog:
    """Return the queued jobs without a message, since they were queued."""
    return _backlog(
        connection,
        _last_event(),
        jobs.c.status == JobStatus.QUEUED,
        jobs.c.dispatched_at.is_(None),
    )


def unclaimed(connection: Connection) -> Backlog:
    """Return the queued jobs, announced or not, since they were queued."""
    return _backlog(connection, _last_event(), jobs.c.status == JobStatus.QUEUED)


def validating(connection: Connection) -> Backlog:
    """Return the jobs whose files have not been checked, since that is wanted."""
    return _backlog(connection, _last_event(), jobs.c.status == JobStatus.VALIDATING_FILES)


def pausing(connection: Connection, message: str) -> Backlog:
    """Return the running jobs that shall pause, since the event with this message."""
    return _backlog(
        connection,
        _last_event(events.c.message == message),
        jobs.c.status == JobStatus.RUNNING,
        jobs.c.pause_requested,
    )


def list_known_jobs(connection: Connection, job_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that have a row."""
    return set(connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(job_ids))))


def list_content_names(connection: Connection) -> list[ContentName]:
    """Return every row that promises content: files, callable names, and what to go on from."""
    rows = connection.execute(
        union_all(
            select(files.c.id, files.c.storage_key),
            select(adapters.c.name, adapters.c.storage_prefix),
            select(batch_chunks.c.batch_id, batch_chunks.c.storage_key),
            select(jobs.c.id + literal(" (to resume from)"), jobs.c.resume_prefix).where(
                jobs.c.status.not_in(sorted(TERMINAL)), jobs.c.resume_prefix.is_not(None)
            ),
        )
    )
    return [ContentName(owner, key) for owner, key in rows]


def list_adapter_names(connection: Connection) -> list[ContentName]:
    """Return every name that can be called."""
    rows = connection.execute(select(adapters.c.name, adapters.c.storage_prefix))
    return [ContentName(owner, key) for owner, key in rows]


def _last_event(*conditions: ColumnElement[bool]) -> _Moment:
    """The moment of a job's last event: every change of status writes one."""
    last = (
        select(events.c.created_at)
        .where(events.c.job_id == jobs.c.id, *conditions)
        .order_by(events.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    return func.coalesce(last, jobs.c.created_at)


def _backlog(connection: Connection, since: _Moment, *conditions: ColumnElement[bool]) -> Backlog:
    row = connection.execute(
        select(func.count().over().label("jobs"), (now() - since).label("seconds"), jobs.c.id)
        .where(*conditions)
        .order_by(since)
        .limit(1)
    ).one_or_none()
    return Backlog(row.jobs, max(0.0, row.seconds), row.id) if row else Backlog()
