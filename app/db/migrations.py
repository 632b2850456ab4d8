"""Bringing a database to the newest schema, by the same Alembic scripts on every engine."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.db.database import Database

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"
# Any number will do, as long as all our processes agree on it.
_POSTGRES_LOCK = 7_461_002


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the database up to a revision; several processes may try at once."""
    _move(database, command.upgrade, revision)


def downgrade(database: Database, revision: str) -> None:
    """Bring the database down to a revision; `base` removes every table."""
    _move(database, command.downgrade, revision)


def known_revisions() -> list[str]:
    """Return every revision that there is a script for, the newest first."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in scripts.walk_revisions()]


def is_current(database: Database) -> bool:
    """Say whether the database answers and is at the newest revision."""
    try:
        with database.read() as connection:
            return current_revision(connection) == _newest_revision()
    except Exception:  # Any driver's way of saying no.
        return False


def current_revision(connection: Connection) -> str | None:
    """Return the revision that a database is at, or None if it holds no tables of ours."""
    return MigrationContext.configure(connection).get_current_revision()


@lru_cache(maxsize=1)
def _newest_revision() -> str:
    return known_revisions()[0]


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config


def _move(database: Database, move: Callable[[Config, str], None], revision: str) -> None:
    config = alembic_config()
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})"))
        config.attributes["connection"] = connection
        move(config, revision)
