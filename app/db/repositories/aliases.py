"""Aliases and their revisions, which are added and never changed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import (
    alias_answers,
    alias_feedback,
    alias_revisions,
    aliases,
    model_traffic,
    projects,
    shadow_samples,
)
from app.domain.aliases import Shadow, Target
from app.domain.errors import NotFound
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class NewRevision:
    """Where an alias is to point from now on.

    Attributes:
        restores: number of the revision that a rollback goes back to.
        created_by: id of the API key that was used.
    """

    targets: Sequence[Target]
    shadow: Shadow | None
    reason: str | None
    created_by: str
    restores: int | None = None


@dataclass(frozen=True, slots=True)
class Revision:
    """Where an alias pointed since some moment; numbers count from 1."""

    id: str
    alias_id: str
    number: int
    targets: Sequence[Target]
    shadow: Shadow | None
    restores: int | None
    reason: str | None
    created_by: str
    created_at: float

    @property
    def models(self) -> list[str]:
        """Every model that it needs."""
        names = [target.model for target in self.targets]
        return names if self.shadow is None else [*names, self.shadow.model]


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of a project's own, and the revision that counts."""

    id: str
    project_id: str
    name: str
    task: str
    metadata: dict[str, str] | None
    created_at: float
    revision: Revision


def lock_project(connection: Connection, project_id: str) -> None:
    """Let nobody else point aliases of the project, or remove models that aliases need, before the
    end of the transaction."""
    query = select(projects.c.id).where(projects.c.id == project_id)
    # Rows that refer to the project can still be added.
    connection.execute(query.with_for_update(key_share=True)).one()


def add(
    connection: Connection,
    *,
    project_id: str,
    name: str,
    task: str,
    metadata: dict[str, str] | None,
    revision: NewRevision,
) -> Alias:
    """Add an alias with its first revision."""
    alias_id = new_id("alias-")
    connection.execute(
        insert(aliases).values(
            id=alias_id,
            project_id=project_id,
            name=name,
            task=task,
            revision=1,
            metadata=metadata,
            created_at=now(),
        )
    )
    _add_revision(connection, alias_id, 1, revision)
    return get(connection, project_id, name)


def find(connection: Connection, project_id: str, name: str) -> Alias | None:
    row = connection.execute(
        _current().where(aliases.c.project_id == project_id, aliases.c.name == name)
    ).one_or_none()
    return _alias(row) if row else None


def get(connection: Connection, project_id: str, name: str) -> Alias:
    """Return an alias of the project. Raises: NotFound."""
    found = find(connection, project_id, name)
    if found is None:
        raise NotFound(f"Could not find alias: {name!r}", param="name")
    return found


def has(connection: Connection, project_id: str, alias_id: str) -> bool:
    """Say whether there still is an alias."""
    query = select(aliases.c.id).where(aliases.c.project_id == project_id, aliases.c.id == alias_id)
    return connection.scalar(query) is not None


def list_all(connection: Connection, project_id: str) -> list[Alias]:
    """Return the project's aliases, oldest first."""
    query = _current().where(aliases.c.project_id == project_id)
    rows = connection.execute(query.order_by(aliases.c.created_at, aliases.c.id))
    return [_alias(row) for row in rows]


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> Page[Alias]:
    """Return the project's aliases, newest first."""
    page = fetch_page(
        connection,
        aliases,
        _current().where(aliases.c.project_id == project_id),
        keys=("created_at", "id"),
        after=after,
        limit=limit,
    )
    return Page([_alias(row) for row in page.items], page.has_more)


def point(
    connection: Connection, alias: Alias, revision: NewRevision, metadata: dict[str, str] | None
) -> Alias:
    """Let an alias point elsewhere; the project must be locked."""
    number = alias.revision.number + 1
    _add_revision(connection, alias.id, number, revision)
    connection.execute(
        update(aliases)
        .where(aliases.c.id == alias.id)
        .values(revision=number, metadata=alias.metadata if metadata is None else metadata)
    )
    return get(connection, alias.project_id, alias.name)


def get_revision(connection: Connection, alias: Alias, number: int) -> Revision:
    """Return a revision of an alias. Raises: NotFound."""
    row = connection.execute(
        select(alias_revisions).where(
            alias_revisions.c.alias_id == alias.id, alias_revisions.c.number == number
        )
    ).one_or_none()
    if row is None:
        raise NotFound(
            f"The alias {alias.name!r} has no revision {number}; it has 1 to "
            f"{alias.revision.number}",
            param="revision",
        )
    return _revision(row._mapping)


def list_revisions(
    connection: Connection, alias: Alias, *, after: str | None, limit: int
) -> Page[Revision]:
    """Return the revisions of an alias, newest first."""
    page = fetch_page(
        connection,
        alias_revisions,
        select(alias_revisions).where(alias_revisions.c.alias_id == alias.id),
        keys=("number",),
        after=after,
        limit=limit,
    )
    return Page([_revision(row._mapping) for row in page.items], page.has_more)


def remove(connection: Connection, alias: Alias) -> None:
    """Remove an alias with everything that is known of it; its versions stay."""
    for table in (shadow_samples, alias_feedback, alias_answers, model_traffic, alias_revisions):
        connection.execute(delete(table).where(table.c.alias_id == alias.id))
    connection.execute(delete(aliases).where(aliases.c.id == alias.id))


def find_needing(connection: Connection, project_id: str, models: Sequence[str]) -> str | None:
    """Return the name of an alias that points at any of some models; the project must be locked."""
    for alias in list_all(connection, project_id):
        if not set(alias.revision.models).isdisjoint(models):
            return alias.name
    return None


def _add_revision(
    connection: Connection, alias_id: str, number: int, revision: NewRevision
) -> None:
    connection.execute(
        insert(alias_revisions).values(
            id=new_id("aliasrev-"),
            alias_id=alias_id,
            number=number,
            targets=[asdict(target) for target in revision.targets],
            shadow=asdict(revision.shadow) if revision.shadow else None,
            restores=revision.restores,
            reason=revision.reason,
            created_by=revision.created_by,
            created_at=now(),
        )
    )


def _current() -> Any:
    """Select aliases, each with the columns of its revision under names of their own."""
    revision = [column.label(f"revision_{column.name}") for column in alias_revisions.c]
    return select(aliases, *revision).join(
        alias_revisions,
        (alias_revisions.c.alias_id == aliases.c.id)
        & (alias_revisions.c.number == aliases.c.revision),
    )


def _alias(row: Any) -> Alias:
    fields = row._mapping
    revision = {column.name: fields[f"revision_{column.name}"] for column in alias_revisions.c}
    return Alias(
        id=fields["id"],
        project_id=fields["project_id"],
        name=fields["name"],
        task=fields["task"],
        metadata=fields["metadata"],
        created_at=fields["created_at"],
        revision=_revision(revision),
    )


def _revision(fields: Any) -> Revision:
    return Revision(
        **{
            **fields,
            "targets": [Target(**target) for target in fields["targets"]],
            "shadow": Shadow(**fields["shadow"]) if fields["shadow"] else None,
        }
    )
