"""Connections and transactions on either engine: Postgres, or SQLite in WAL mode."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from app.domain.errors import DatabaseUnavailable, InvalidInput, StorageFull

# Below this, a race between a writer and a checkpoint can corrupt a WAL database
# (https://sqlite.org/wal.html#walresetbug).
SQLITE_WAL_SAFE = (3, 51, 3)

_log = logging.getLogger("tunesmith.database")

_POSTGRES_OPTIONS = (
    "-c idle_in_transaction_session_timeout=15000 -c lock_timeout=5000 -c statement_timeout=30000"
)
_POSTGRES_READ_ONLY = " -c default_transaction_read_only=on"


@dataclass(frozen=True, slots=True)
class Database:
    """One database. Transactions are short: no network and no file is touched inside one.

    Both kinds may raise DatabaseUnavailable, and one that writes StorageFull: then nothing was
    written, unless the connection was lost in the very moment of the commit.
    """

    engine: Engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction."""
        with _in_domain_words(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end, or rolls back on any exception.

        SQLite takes its write lock at once: a transaction that read first could otherwise fail
        when it comes to write.
        """
        engine = self.engine.execution_options(tunesmith_begin="BEGIN IMMEDIATE")
        with _in_domain_words(), engine.begin() as connection:
            yield connection

    def is_reachable(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.read() as connection:
                connection.execute(text("SELECT 1"))
        except Exception:  # Any driver's way of saying no.
            return False
        return True


def open_database(url: str, *, read_only: bool = False) -> Database:
    """Connect lazily to `sqlite:///path` or `postgresql+psycopg://…`.

    Args:
        read_only: change nothing, and make no database that is not there.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return Database(_open_sqlite(parsed, read_only))
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        return Database(
            create_engine(
                parsed,
                pool_pre_ping=True,
                pool_size=10,
                max_overflow=20,
                connect_args={
                    "options": _POSTGRES_OPTIONS + (_POSTGRES_READ_ONLY if read_only else ""),
                    "connect_timeout": 5,
                },
            )
        )
    raise InvalidInput(f"DATABASE_URL must start with sqlite or postgresql, found {url!r}")


@contextmanager
def _in_domain_words() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        cause = getattr(error, "orig", None) or error
        # Postgres has an error of this name, SQLite only says so.
        if type(cause).__name__ == "DiskFull" or "disk is full" in str(cause):
            raise StorageFull("The disk of the database is full; nothing was stored.") from error
        _log.warning("the database does not answer: %s", cause)
        raise DatabaseUnavailable() from error


def _open_sqlite(url: URL, read_only: bool) -> Engine:
    module = _sqlite_module()
    if read_only:
        # Reading a WAL database still needs its -wal and -shm, which are made if absent.
        url = url.set(database=f"file:{quote(url.database or '')}").update_query_dict(
            {"mode": "ro", "uri": "true"}
        )
    else:
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        module=module,
        poolclass=QueuePool,
        pool_size=10,
        max_overflow=20,
        connect_args={
            "timeout": 30,
            "check_same_thread": False,
            "isolation_level": None,
        },
    )
    journal = "WAL"
    if module.sqlite_version_info < SQLITE_WAL_SAFE:
        journal = "TRUNCATE"
        _log.warning(
            "SQLite %s can corrupt a WAL database: the slower, safe journal is used instead",
            module.sqlite_version,
        )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        if not read_only:
            _set_journal_mode(cursor, journal, module.OperationalError)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        begin = connection.get_execution_options().get("tunesmith_begin", "BEGIN")
        connection.exec_driver_sql(begin)

    return engine


def _set_journal_mode(cursor: Any, journal: str, failure: type[Exception]) -> None:
    """Set the mode, which SQLite refuses at once while another process does so on a new file."""
    deadline = time.monotonic() + 30
    while True:
        try:
            cursor.execute(f"PRAGMA journal_mode = {journal}")
            return
        except failure as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _sqlite_module() -> Any:
    try:
        from pysqlite3 import dbapi2  # noqa: PLC0415 - absent on Windows, where the stdlib serves.
    except ImportError:
        import sqlite3 as dbapi2  # noqa: PLC0415
    return dbapi2
