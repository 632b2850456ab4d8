"""`tunesmith keys`: make, list and revoke API keys, straight in the database."""

from datetime import UTC, datetime

import click

from app.db.database import Database, open_database
from app.db.migrations import upgrade
from app.db.repositories import keys as rows
from app.services.keys import DEFAULT_PROJECT, create_key
from app.settings import load_settings


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@click.option("--name", default="cli", show_default=True, help="What the key is for.")
@click.option("--project", default=DEFAULT_PROJECT, show_default=True)
@click.option("--organization", default=None, help="Default: TUNESMITH_ORGANIZATION.")
def create(name: str, project: str, organization: str | None) -> None:
    """Make a key and print it. It cannot be read again."""
    with _database().write() as connection:
        key = create_key(
            connection,
            organization=organization or load_settings().organization,
            project=project,
            name=name,
        )
    click.echo(key)


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    with _database().read() as connection:
        for key in rows.list_all(connection):
            created = datetime.fromtimestamp(key.created_at, UTC).isoformat(timespec="seconds")
            state = "revoked" if key.revoked_at is not None else "active"
            click.echo(f"{key.id}  {state:8}  {created}  {key.project_id}  {key.name}")


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke a key by its id. It is refused from then on."""
    with _database().write() as connection:
        rows.revoke(connection, key_id)


def _database() -> Database:
    database = open_database(load_settings().database_url)
    upgrade(database)
    return database
