"""Connections and transactions on either engine: Postgres, or SQLite in WAL mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

# Below this, a race between a writer and a checkpoint can corrupt a WAL database
# (https://sqlite.org/wal.html#walresetbug).
SQLITE_WAL_SAFE = (3, 51, 3)

_POSTGRES_OPTIONS = (
    "-c idle_in_transaction_session_timeout=15000 -c lock_timeout=5000 -c statement_timeout=30000"
)


@dataclass(frozen=True, slots=True)
class Database:
    """One database. Transactions are short: no network and no file is touched inside one."""

    engine: Engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end, or rolls back on any exception.

        SQLite takes its write lock at once: a transaction that read first could otherwise fail
        when it comes to write.
        """
        engine = self.engine.execution_options(tunesmith_begin="BEGIN IMMEDIATE")
        with engine.begin() as connection:
            yield connection

    def is_reachable(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.read() as connection:
                connection.execute(text("SELECT 1"))
        except Exception:  # Any driver's way of saying no.
            return False
        return True


def open_database(url: str) -> Database:
    """Connect lazily to `sqlite:///path` or `postgresql+psycopg://…`."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return Database(_open_sqlite(parsed))
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        return Database(
            create_engine(
                parsed,
                pool_pre_ping=True,
                pool_size=10,
                max_overflow=20,
                connect_args={"options": _POSTGRES_OPTIONS, "connect_timeout": 5},
            )
        )
    raise ValueError(f"DATABASE_URL must start with sqlite or postgresql, found {url!r}")


def _open_sqlite(url: URL) -> Engine:
    module = _sqlite_module()
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
    # A build with the WAL-reset bug gets the slower, safe journal.
    journal = "WAL" if module.sqlite_version_info >= SQLITE_WAL_SAFE else "TRUNCATE"

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        cursor.execute(f"PRAGMA journal_mode = {journal}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        begin = connection.get_execution_options().get("tunesmith_begin", "BEGIN")
        connection.exec_driver_sql(begin)

    return engine


def _sqlite_module() -> Any:
    try:
        from pysqlite3 import dbapi2  # noqa: PLC0415 - absent on Windows, where the stdlib serves.
    except ImportError:
        import sqlite3 as dbapi2  # noqa: PLC0415
    return dbapi2
