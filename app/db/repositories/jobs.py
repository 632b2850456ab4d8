"""Rows of jobs. `transition` is the only writer of a status, and tells the story as it writes."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Update, insert, or_, select, update

from app.db.clock import now
from app.db.json_text import json_text
from app.db.repositories import events
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import jobs
from app.domain.errors import InvalidTransition, LeaseLost, NotFound
from app.domain.job_state import TERMINAL, JobStatus, sources_of


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning job, as it is stored."""

    id: str
    project_id: str
    status: JobStatus
    model: str
    base_model: str
    start_from: dict[str, Any] | None
    method: str
    hyperparameters: dict[str, Any]
    extension: dict[str, Any]
    training_file: str
    validation_file: str | None
    seed: int
    metadata: dict[str, str] | None
    output_model: str
    priority: int
    spec: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    estimated_finish: float | None
    progress: dict[str, Any] | None
    trained_tokens: int | None
    result_files: list[str] | None
    report: dict[str, Any] | None
    error: dict[str, Any] | None
    dispatched_at: float | None
    lease_epoch: int
    lease_owner: str | None
    lease_expires_at: float | None
    attempts: int
    pause_requested: bool
    resume_prefix: str | None
    resume_step: int | None
    fallback_prefix: str | None
    fallback_step: int | None
    storage_swept_at: float | None

    @property
    def task(self) -> str:
        """Name in `app.domain.tasks.TASKS`."""
        name: str = self.extension["task"]
        return name


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job needs at birth; it starts in `validating_files`."""

    id: str
    project_id: str
    model: str
    base_model: str
    start_from: dict[str, Any] | None
    method: str
    hyperparameters: dict[str, Any]
    extension: dict[str, Any]
    training_file: str
    validation_file: str | None
    seed: int
    metadata: dict[str, str] | None
    output_model: str


def add(connection: Connection, job: NewJob) -> Job:
    row = connection.execute(
        insert(jobs)
        .values(
            id=job.id,
            project_id=job.project_id,
            status=JobStatus.VALIDATING_FILES,
            model=job.model,
            base_model=job.base_model,
            start_from=job.start_from,
            method=job.method,
            hyperparameters=job.hyperparameters,
            extension=job.extension,
            training_file=job.training_file,
            validation_file=job.validation_file,
            seed=job.seed,
            metadata=job.metadata,
            output_model=job.output_model,
            created_at=now(),
        )
        .returning(jobs)
    ).one()
    events.add(connection, job.id, f"Created fine-tuning job: {job.id}")
    return from_row(row)


def get(connection: Connection, project_id: str, job_id: str, *, for_update: bool = False) -> Job:
    """Return a job of the project.

    Args:
        for_update: nobody else may change the row before the end of the transaction.

    Raises:
        NotFound: there is none.
    """
    job = find(connection, job_id, for_update=for_update)
    if job is None or job.project_id != project_id:
        raise NotFound(f"Could not find fine-tuning job: {job_id!r}", param="fine_tuning_job_id")
    return job


def find(connection: Connection, job_id: str, *, for_update: bool = False) -> Job | None:
    query = select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return from_row(row) if row else None


def list_page(
    connection: Connection,
    project_id: str,
    *,
    metadata: dict[str, str] | None,
    without_metadata: bool,
    after: str | None,
    limit: int,
) -> Page[Job]:
    """Return the project's jobs, newest first, that carry all of `metadata`."""
    query: Select[Any] = select(jobs).where(jobs.c.project_id == project_id)
    for key, value in (metadata or {}).items():
        query = query.where(json_text(jobs.c.metadata, key) == value)
    if without_metadata:
        query = query.where(jobs.c.metadata.is_(None))
    page = fetch_page(connection, jobs, query, keys=("created_at", "id"), after=after, limit=limit)
    return Page([from_row(row) for row in page.items], page.has_more)


def list_in(connection: Connection, status: JobStatus, limit: int) -> list[Job]:
    """Return the oldest jobs in a status."""
    rows = connection.execute(
        select(jobs).where(jobs.c.status == status).order_by(jobs.c.created_at).limit(limit)
    )
    return [from_row(row) for row in rows]


def is_adapter_needed(connection: Connection, job_id: str, storage_prefix: str) -> bool:
    """Say whether an adapter's own job still runs, or one that starts from it has not ended."""
    needs = or_(
        jobs.c.id == job_id, jobs.c.start_from["storage_prefix"].as_string() == storage_prefix
    )
    query = select(jobs.c.id).where(jobs.c.status.not_in(sorted(TERMINAL)), needs).limit(1)
    return connection.scalar(query) is not None


def list_unswept(connection: Connection, ended_for_seconds: float, limit: int) -> list[Job]:
    """Return jobs under way, and those that ended a while ago and were never swept."""
    is_ended = jobs.c.status.in_(sorted(TERMINAL))
    rows = connection.execute(
        select(jobs)
        .where(
            jobs.c.storage_swept_at.is_(None),
            jobs.c.lease_epoch > 0,
            or_(~is_ended, jobs.c.finished_at < now() - ended_for_seconds),
        )
        .order_by(is_ended.desc(), jobs.c.created_at)
        .limit(limit)
    )
    return [from_row(row) for row in rows]


def forget_checkpoints(connection: Connection, job_id: str) -> None:
    """Drop the pointers of an ended job to what it could have resumed from."""
    connection.execute(
        _ended(job_id).values(
            resume_prefix=None, resume_step=None, fallback_prefix=None, fallback_step=None
        )
    )


def mark_swept(connection: Connection, job_id: str) -> None:
    """Note that nothing is left in storage that no name stands for."""
    connection.execute(_ended(job_id).values(storage_swept_at=now()))


def sweep_again(connection: Connection, job_id: str) -> None:
    connection.execute(_ended(job_id).values(storage_swept_at=None))


def request_pause(connection: Connection, job_id: str, is_wanted: bool, message: str) -> Job:
    """Note on a running job whether it shall pause, with the event that tells of it."""
    row = connection.execute(
        update(jobs).where(jobs.c.id == job_id).values(pause_requested=is_wanted).returning(jobs)
    ).one()
    events.add(connection, job_id, message)
    return from_row(row)


def transition(
    connection: Connection,
    job_id: str,
    to: JobStatus,
    *,
    message: str,
    level: events.Level = "info",
    source: JobStatus | None = None,
    epoch: int | None = None,
    **fields: Any,
) -> Job:
    """Move a job to another status, with its event, if the table of moves allows it.

    Args:
        source: the only status that the job may come from; without it, any that leads to `to`.
        epoch: the caller's lease epoch; given by every writer that works under a lease. It
            implies that the job is running.
        fields: further columns to write in the same statement.

    Raises:
        NotFound: there is no such job.
        LeaseLost: the epoch is not the job's any more, or the job has left the state.
        InvalidTransition: the job's status does not lead there; nothing was written.
    """
    sources = sources_of(to)
    if epoch is not None:
        source = JobStatus.RUNNING
    if source is not None:
        sources &= {source}
    statement = update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sorted(sources)))
    if epoch is not None:
        statement = statement.where(jobs.c.lease_epoch == epoch)
    # A wish to pause ends with the state that it was made in.
    values = {"status": to, "pause_requested": False, **fields}
    row = connection.execute(statement.values(**values).returning(jobs)).one_or_none()
    if row is not None:
        events.add(connection, job_id, message, level=level)
        return from_row(row)
    current = connection.scalar(select(jobs.c.status).where(jobs.c.id == job_id))
    if current is None:
        raise NotFound(f"Could not find fine-tuning job: {job_id!r}", param="fine_tuning_job_id")
    if epoch is not None:
        raise LeaseLost(f"attempt {epoch} of job {job_id} cannot move it from {current} to {to}")
    if current == to:
        raise InvalidTransition(f"Job {job_id} is {current} already.")
    raise InvalidTransition(f"Job {job_id} is {current}: it cannot become {to}.")


def _ended(job_id: str) -> Update:
    return update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sorted(TERMINAL)))


def from_row(row: Any) -> Job:
    """Return the job of a row that holds every column of the table."""
    values = dict(row._mapping)
    values["status"] = JobStatus(values["status"])
    return Job(**values)
