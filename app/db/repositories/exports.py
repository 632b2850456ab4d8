"""Rows of exports. `transition` is the only writer of a status."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import exports
from app.domain.errors import InvalidTransition, LeaseLost, NotFound
from app.domain.exports import TERMINAL, TRANSITIONS, ExportStatus
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Export:
    """One export, as it is stored."""

    id: str
    project_id: str
    status: ExportStatus
    model: str
    format: str
    quantization: str
    metadata: dict[str, str] | None
    job_id: str
    base_model: str
    storage_prefix: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    result_files: list[str] | None
    verification: dict[str, Any] | None
    error: dict[str, Any] | None
    dispatched_at: float | None
    lease_epoch: int
    lease_owner: str | None
    lease_expires_at: float | None
    attempts: int


@dataclass(frozen=True, slots=True)
class NewExport:
    """What an export needs at birth; it is queued from then on."""

    project_id: str
    model: str
    format: str
    quantization: str
    metadata: dict[str, str] | None
    job_id: str
    base_model: str
    storage_prefix: str


def add(connection: Connection, export: NewExport) -> Export:
    row = connection.execute(
        insert(exports)
        .values(
            id=new_id("export-"),
            project_id=export.project_id,
            status=ExportStatus.QUEUED,
            model=export.model,
            format=export.format,
            quantization=export.quantization,
            metadata=export.metadata,
            job_id=export.job_id,
            base_model=export.base_model,
            storage_prefix=export.storage_prefix,
            created_at=now(),
        )
        .returning(exports)
    ).one()
    return from_row(row)


def get(connection: Connection, project_id: str, export_id: str) -> Export:
    """Return an export of the project. Raises: NotFound."""
    export = find(connection, export_id)
    if export is None or export.project_id != project_id:
        raise _not_found(export_id)
    return export


def find(connection: Connection, export_id: str) -> Export | None:
    row = connection.execute(select(exports).where(exports.c.id == export_id)).one_or_none()
    return from_row(row) if row else None


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> Page[Export]:
    """Return the project's exports, newest first."""
    query = select(exports).where(exports.c.project_id == project_id)
    keys = ("created_at", "id")
    page = fetch_page(connection, exports, query, keys=keys, after=after, limit=limit)
    return Page([from_row(row) for row in page.items], page.has_more)


def find_reading(connection: Connection, storage_prefix: str) -> str | None:
    """Return the id of an export that has not ended and reads the files under a prefix."""
    query = select(exports.c.id).where(
        exports.c.storage_prefix == storage_prefix,
        exports.c.status.not_in(sorted(TERMINAL)),
    )
    return connection.scalar(query.limit(1))


def transition(
    connection: Connection,
    export_id: str,
    to: ExportStatus,
    *,
    source: ExportStatus | None = None,
    epoch: int | None = None,
    **fields: Any,
) -> Export:
    """Move an export to another status, if the table of moves allows it.

    Args:
        source: the only status that it may come from; without it, any that leads to `to`.
        epoch: the caller's lease epoch; given by every writer that works under a lease.
        fields: further columns to write in the same statement.

    Raises:
        NotFound: there is no such export.
        LeaseLost: the epoch is not the export's any more, or it has left the state.
        InvalidTransition: its status does not lead there; nothing was written.
    """
    sources = {status for status, targets in TRANSITIONS.items() if to in targets}
    if epoch is not None:
        source = ExportStatus.RUNNING
    if source is not None:
        sources &= {source}
    statement = update(exports).where(
        exports.c.id == export_id, exports.c.status.in_(sorted(sources))
    )
    if epoch is not None:
        statement = statement.where(exports.c.lease_epoch == epoch)
    values = {"status": to, **fields}
    row = connection.execute(statement.values(**values).returning(exports)).one_or_none()
    if row is not None:
        return from_row(row)
    current = connection.scalar(select(exports.c.status).where(exports.c.id == export_id))
    if current is None:
        raise _not_found(export_id)
    if epoch is not None:
        raise LeaseLost(f"attempt {epoch} of {export_id} cannot move it from {current} to {to}")
    raise InvalidTransition(f"Export {export_id} is {current}: it cannot become {to}.")


def from_row(row: Any) -> Export:
    """Return the export of a row that holds every column of the table."""
    values = dict(row._mapping)
    values["status"] = ExportStatus(values["status"])
    return Export(**values)


def _not_found(export_id: str) -> NotFound:
    return NotFound(f"Could not find export: {export_id!r}", param="export_id")
