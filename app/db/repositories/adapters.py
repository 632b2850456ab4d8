"""Adapters that can be called by name, and the checkpoints of a job that name some of them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page, in_parts
from app.db.tables import adapters, checkpoints
from app.domain.errors import NotFound
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Adapter:
    """Servable weights: one immutable directory in storage under a name that is never reused."""

    name: str
    project_id: str
    job_id: str
    base_model: str
    task: str
    storage_prefix: str
    manifest_sha256: str
    step: int
    is_final: bool
    created_at: float

    @property
    def checkpoint_prefix(self) -> str:
        """Where in storage the checkpoint lies whose `adapter/` this is."""
        return self.storage_prefix.removesuffix("/adapter")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point of a run that can be called as a model."""

    id: str
    job_id: str
    step: int
    model: str
    metrics: dict[str, Any]
    created_at: float


def add(
    connection: Connection,
    *,
    name: str,
    project_id: str,
    job_id: str,
    base_model: str,
    task: str,
    storage_prefix: str,
    manifest_sha256: str,
    step: int,
    is_final: bool,
) -> None:
    connection.execute(
        insert(adapters).values(
            name=name,
            project_id=project_id,
            job_id=job_id,
            base_model=base_model,
            task=task,
            storage_prefix=storage_prefix,
            manifest_sha256=manifest_sha256,
            step=step,
            is_final=is_final,
            created_at=now(),
        )
    )


def find(connection: Connection, project_id: str, name: str) -> Adapter | None:
    row = connection.execute(
        select(adapters).where(adapters.c.name == name, adapters.c.project_id == project_id)
    ).one_or_none()
    return Adapter(**row._mapping) if row else None


def list_final(connection: Connection, project_id: str) -> list[Adapter]:
    """Return the project's fine-tuned models, oldest first; those of checkpoints are left out."""
    rows = connection.execute(
        select(adapters)
        .where(adapters.c.project_id == project_id, adapters.c.is_final)
        .order_by(adapters.c.created_at, adapters.c.name)
    )
    return [Adapter(**row._mapping) for row in rows]


def list_named(connection: Connection, names: Collection[str]) -> list[Adapter]:
    """Return the adapters of these names, of whatever project."""
    rows = (
        row
        for part in in_parts(names)
        for row in connection.execute(select(adapters).where(adapters.c.name.in_(part)))
    )
    return [Adapter(**row._mapping) for row in rows]


def existing(connection: Connection, names: Collection[str]) -> set[str]:
    """Return those of these names that there are, in whatever project."""
    return {adapter.name for adapter in list_named(connection, names)}


def list_final_since(connection: Connection, moment: float, limit: int) -> list[Adapter]:
    """Return the newest fine-tuned models of all projects that were made after a moment."""
    rows = connection.execute(
        select(adapters)
        .where(adapters.c.is_final, adapters.c.created_at > moment)
        .order_by(adapters.c.created_at.desc())
        .limit(limit)
    )
    return [Adapter(**row._mapping) for row in rows]


def remove(connection: Connection, project_id: str, name: str) -> None:
    """Remove a name. Raises: NotFound."""
    result = connection.execute(
        delete(adapters).where(adapters.c.name == name, adapters.c.project_id == project_id)
    )
    if result.rowcount == 0:
        raise NotFound(f"The model {name!r} does not exist", param="model", code="model_not_found")


def remove_prefix(connection: Connection, storage_prefix: str) -> None:
    """Remove every name that stands for the content under a prefix."""
    connection.execute(delete(adapters).where(adapters.c.storage_prefix == storage_prefix))


def has_prefix(connection: Connection, storage_prefix: str) -> bool:
    """Say whether any name still stands for the content under a prefix."""
    query = select(adapters.c.name).where(adapters.c.storage_prefix == storage_prefix).limit(1)
    return connection.scalar(query) is not None


def list_of_job(connection: Connection, job_id: str) -> list[Adapter]:
    rows = connection.execute(select(adapters).where(adapters.c.job_id == job_id))
    return [Adapter(**row._mapping) for row in rows]


def add_checkpoint(
    connection: Connection,
    *,
    job_id: str,
    step: int,
    model: str,
    metrics: dict[str, Any],
) -> None:
    connection.execute(
        insert(checkpoints).values(
            id=new_id("ftckpt_"),
            job_id=job_id,
            step=step,
            model=model,
            metrics=metrics,
            created_at=now(),
        )
    )


def has_checkpoint(connection: Connection, job_id: str, step: int) -> bool:
    query = select(checkpoints.c.id).where(
        checkpoints.c.job_id == job_id, checkpoints.c.step == step
    )
    return connection.scalar(query) is not None


def list_checkpoints(
    connection: Connection, job_id: str, *, after: str | None, limit: int
) -> Page[Checkpoint]:
    """Return the job's checkpoints, newest first."""
    page = fetch_page(
        connection,
        checkpoints,
        select(checkpoints).where(checkpoints.c.job_id == job_id),
        keys=("step",),
        after=after,
        limit=limit,
    )
    return Page([Checkpoint(**row._mapping) for row in page.items], page.has_more)
