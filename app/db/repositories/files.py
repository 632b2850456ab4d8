"""Rows of files. Their content is in storage, written before the row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, insert, or_, select

from app.db.clock import now
from app.db.repositories.pages import Order, Page, fetch_page
from app.db.tables import batches, files, jobs, sweeps
from app.domain.batches import LIVE
from app.domain.errors import NotFound
from app.domain.job_state import TERMINAL
from app.domain.sweeps import SweepStatus


@dataclass(frozen=True, slots=True)
class File:
    """A stored file of a project; `record_*` are set for datasets only.

    Attributes:
        adapter: of an uploaded adapter, the fields of `AdapterSummary`.
    """

    id: str
    project_id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    storage_key: str
    record_kind: str | None
    record_count: int | None
    adapter: dict[str, Any] | None
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose content is stored and whose row is not yet written."""

    id: str
    project_id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    storage_key: str
    record_kind: str | None = None
    record_count: int | None = None
    adapter: dict[str, Any] | None = None
    expires_after_seconds: int | None = None


def add(connection: Connection, file: NewFile) -> File:
    row = connection.execute(
        insert(files)
        .values(
            id=file.id,
            project_id=file.project_id,
            purpose=file.purpose,
            filename=file.filename,
            bytes=file.bytes,
            sha256=file.sha256,
            storage_key=file.storage_key,
            record_kind=file.record_kind,
            record_count=file.record_count,
            adapter=file.adapter,
            created_at=now(),
            expires_at=now() + file.expires_after_seconds if file.expires_after_seconds else None,
        )
        .returning(files)
    ).one()
    return File(**row._mapping)


def get(connection: Connection, project_id: str, file_id: str, *, param: str | None = None) -> File:
    """Return a live file of the project. Raises: NotFound."""
    row = connection.execute(
        select(files).where(files.c.id == file_id, files.c.project_id == project_id, _is_live())
    ).one_or_none()
    if row is None:
        raise NotFound(f"No such file: {file_id!r}", param=param)
    return File(**row._mapping)


def get_kept(connection: Connection, project_id: str, file_id: str) -> File:
    """Return a file that is kept for what reads it, even past its time. Raises: NotFound."""
    row = connection.execute(
        select(files).where(files.c.id == file_id, files.c.project_id == project_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"No such file: {file_id!r}")
    return File(**row._mapping)


def list_page(
    connection: Connection,
    project_id: str,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Order,
) -> Page[File]:
    query = select(files).where(files.c.project_id == project_id, _is_live())
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    page = fetch_page(
        connection,
        files,
        query,
        keys=("created_at", "id"),
        after=after,
        limit=limit,
        order=order,
    )
    return Page([File(**row._mapping) for row in page.items], page.has_more)


def is_in_use(connection: Connection, file_id: str) -> bool:
    """Say whether a job, a sweep or a batch that has not ended reads the file."""
    return bool(connection.scalar(select(_is_used(file_id))))


def remove(connection: Connection, project_id: str, file_id: str) -> None:
    connection.execute(delete(files).where(files.c.id == file_id, files.c.project_id == project_id))


def list_known(connection: Connection, file_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that have a row."""
    return set(connection.scalars(select(files.c.id).where(files.c.id.in_(file_ids))))


def list_expired(connection: Connection, limit: int) -> list[File]:
    """Return files past their time that nothing under way reads."""
    rows = connection.execute(
        select(files).where(files.c.expires_at <= now(), ~_is_used(files.c.id)).limit(limit)
    )
    return [File(**row._mapping) for row in rows]


def _is_live() -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > now())


def _is_used(file_id: str | ColumnElement[str]) -> ColumnElement[bool]:
    job = select(jobs.c.id).where(
        jobs.c.status.not_in(sorted(TERMINAL)),
        or_(
            jobs.c.training_file == file_id,
            jobs.c.validation_file == file_id,
            jobs.c.extension["training"]["replay"]["file"].as_string() == file_id,
            jobs.c.start_from["file"]["file_id"].as_string() == file_id,
        ),
    )
    # Its next job will read the files of the last.
    sweep = select(sweeps.c.id).where(
        sweeps.c.status == SweepStatus.RUNNING,
        or_(
            sweeps.c.request["training_file"].as_string() == file_id,
            sweeps.c.request["validation_file"].as_string() == file_id,
            sweeps.c.request["training"]["replay"]["file"].as_string() == file_id,
            sweeps.c.request["start_file"].as_string() == file_id,
        ),
    )
    batch = select(batches.c.id).where(
        batches.c.status.in_(sorted(LIVE)), batches.c.input_file_id == file_id
    )
    return or_(exists(job), exists(sweep), exists(batch))
