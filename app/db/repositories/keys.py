"""Organisations, projects and API keys."""

from dataclasses import dataclass

from sqlalchemy import Connection, exists, insert, select, update

from app.db.clock import now
from app.db.tables import api_keys, organizations, projects
from app.domain.errors import NotFound
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking: the project that an API key belongs to.

    Attributes:
        key_id: empty where the service acts for the project by itself.
    """

    key_id: str
    project_id: str
    organization_id: str
    organization_name: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key's row: never the key itself."""

    id: str
    name: str
    project_id: str
    secret_sha256: str
    created_at: float
    revoked_at: float | None


def has_any(connection: Connection) -> bool:
    return bool(connection.scalar(select(exists(select(api_keys.c.id)))))


def ensure_project(connection: Connection, organization: str, project: str) -> str:
    """Return the id of a project, making it and its organisation if they are new."""
    organization_id = connection.scalar(
        select(organizations.c.id).where(organizations.c.name == organization)
    )
    if organization_id is None:
        organization_id = new_id("org-")
        connection.execute(
            insert(organizations).values(id=organization_id, name=organization, created_at=now())
        )
    project_id = connection.scalar(
        select(projects.c.id).where(
            projects.c.organization_id == organization_id, projects.c.name == project
        )
    )
    if project_id is None:
        project_id = new_id("proj_")
        connection.execute(
            insert(projects).values(
                id=project_id,
                organization_id=organization_id,
                name=project,
                created_at=now(),
            )
        )
    return str(project_id)


def add(
    connection: Connection,
    *,
    key_id: str,
    project_id: str,
    name: str,
    secret_sha256: str,
) -> None:
    connection.execute(
        insert(api_keys).values(
            id=key_id,
            project_id=project_id,
            name=name,
            secret_sha256=secret_sha256,
            created_at=now(),
        )
    )


def find_active(connection: Connection, key_id: str) -> tuple[Principal, str] | None:
    """Return a live key's principal and the SHA-256 of its secret, or None."""
    row = connection.execute(
        select(
            api_keys.c.id,
            api_keys.c.secret_sha256,
            projects.c.id.label("project_id"),
            organizations.c.id.label("organization_id"),
            organizations.c.name,
        )
        .join(projects, projects.c.id == api_keys.c.project_id)
        .join(organizations, organizations.c.id == projects.c.organization_id)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    ).one_or_none()
    if row is None:
        return None
    return Principal(row.id, row.project_id, row.organization_id, row.name), row.secret_sha256


def principal_of(connection: Connection, project_id: str) -> Principal:
    """Return whom the service acts for when it goes on with what a project has asked for."""
    row = connection.execute(
        select(organizations.c.id, organizations.c.name)
        .join(projects, projects.c.organization_id == organizations.c.id)
        .where(projects.c.id == project_id)
    ).one()
    return Principal("", project_id, row.id, row.name)


def list_all(connection: Connection) -> list[StoredKey]:
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at))
    return [StoredKey(**row._mapping) for row in rows]


def revoke(connection: Connection, key_id: str) -> None:
    """Revoke a key at once. Raises: NotFound."""
    result = connection.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    if result.rowcount == 0:
        raise NotFound(f"no active key {key_id!r}")
