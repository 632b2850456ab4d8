"""Ensembles and their members. A member cannot be removed while an ensemble needs it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page, in_parts
from app.db.tables import adapters, ensemble_members, ensembles
from app.domain.ensembles import EnsembleMethod
from app.domain.errors import NotFound
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Member:
    """A fine-tuned model in an ensemble; the weights of one ensemble are 1 together."""

    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class NewEnsemble:
    """What an ensemble needs at birth."""

    project_id: str
    model: str
    method: EnsembleMethod
    task: str
    metadata: dict[str, str] | None
    members: Sequence[Member]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several models under one name, which is never used again."""

    id: str
    project_id: str
    model: str
    method: EnsembleMethod
    task: str
    metadata: dict[str, str] | None
    created_at: float
    members: Sequence[Member]


def add(connection: Connection, ensemble: NewEnsemble) -> Ensemble:
    row = connection.execute(
        insert(ensembles)
        .values(
            id=new_id("ens-"),
            project_id=ensemble.project_id,
            model=ensemble.model,
            method=ensemble.method,
            task=ensemble.task,
            metadata=ensemble.metadata,
            created_at=now(),
        )
        .returning(ensembles)
    ).one()
    connection.execute(
        insert(ensemble_members),
        [
            {
                "ensemble_id": row.id,
                "position": position,
                "model": member.model,
                "weight": member.weight,
            }
            for position, member in enumerate(ensemble.members)
        ],
    )
    return Ensemble(**row._mapping, members=ensemble.members)


def get(connection: Connection, project_id: str, ensemble_id: str) -> Ensemble:
    """Return an ensemble of the project. Raises: NotFound."""
    found = _find(connection, project_id, ensembles.c.id == ensemble_id)
    if found is None:
        raise NotFound(f"Could not find ensemble: {ensemble_id!r}", param="ensemble_id")
    return found


def find(connection: Connection, project_id: str, model: str) -> Ensemble | None:
    """Return the ensemble that the name of a model stands for."""
    return _find(connection, project_id, ensembles.c.model == model)


def existing(connection: Connection, models: Collection[str]) -> set[str]:
    """Return those of these models that are ensembles, of whatever project."""
    return {
        model
        for part in in_parts(models)
        for model in connection.scalars(
            select(ensembles.c.model).where(ensembles.c.model.in_(part))
        )
    }


def list_all(connection: Connection, project_id: str) -> list[Ensemble]:
    """Return the project's ensembles, oldest first."""
    query = select(ensembles).where(ensembles.c.project_id == project_id)
    rows = connection.execute(query.order_by(ensembles.c.created_at, ensembles.c.id)).all()
    return _with_members(connection, rows)


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> Page[Ensemble]:
    """Return the project's ensembles, newest first."""
    page = fetch_page(
        connection,
        ensembles,
        select(ensembles).where(ensembles.c.project_id == project_id),
        keys=("created_at", "id"),
        after=after,
        limit=limit,
    )
    return Page(_with_members(connection, page.items), page.has_more)


def remove(connection: Connection, ensemble_id: str) -> None:
    """Remove an ensemble; its members stay."""
    connection.execute(
        delete(ensemble_members).where(ensemble_members.c.ensemble_id == ensemble_id)
    )
    connection.execute(delete(ensembles).where(ensembles.c.id == ensemble_id))


def find_needing(connection: Connection, models: Sequence[str]) -> str | None:
    """Return the name of an ensemble that any of some models is a member of."""
    query = (
        select(ensembles.c.model)
        .join(ensemble_members, ensemble_members.c.ensemble_id == ensembles.c.id)
        .where(ensemble_members.c.model.in_(models))
        .order_by(ensembles.c.created_at)
    )
    return connection.scalar(query.limit(1))


def lock_members(connection: Connection, models: Sequence[str]) -> None:
    """Let nobody remove these models, or make them members, before the end of the transaction."""
    query = select(adapters.c.name).where(adapters.c.name.in_(models))
    connection.execute(query.order_by(adapters.c.name).with_for_update()).all()


def _find(
    connection: Connection, project_id: str, condition: ColumnElement[bool]
) -> Ensemble | None:
    query = select(ensembles).where(ensembles.c.project_id == project_id, condition)
    found = _with_members(connection, connection.execute(query).all())
    return found[0] if found else None


def _with_members(connection: Connection, rows: Sequence[Any]) -> list[Ensemble]:
    members: dict[str, list[Member]] = {row.id: [] for row in rows}
    if not members:
        return []
    query = select(ensemble_members).where(ensemble_members.c.ensemble_id.in_(members))
    for row in connection.execute(query.order_by(ensemble_members.c.position)):
        members[row.ensemble_id].append(Member(row.model, row.weight))
    return [Ensemble(**row._mapping, members=members[row.id]) for row in rows]
