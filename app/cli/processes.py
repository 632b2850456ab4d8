"""The processes of an installation, each in the foreground: api, worker, engine; and migrate."""

import os
import sys

import click
import uvicorn

from app.db.database import Database, open_database
from app.db.migrations import current_revision, downgrade, upgrade
from app.db.repositories import locks
from app.domain.errors import Unavailable
from app.inference.endpoints import endpoints
from app.lifeline import hold_lifeline
from app.services.sweeper import LOCK, LOCK_TTL_SECONDS
from app.settings import load_settings


@click.command()
@click.option(
    "--host", default=None, help="Address to listen on (default: API_HOST, or 127.0.0.1)."
)
@click.option("--port", default=None, type=int, help="Port (default: API_PORT, or 8000).")
@click.option("--workers", default=1, show_default=True, help="Number of processes.")
def api(host: str | None, port: int | None, workers: int) -> None:
    """Run the HTTP API."""
    settings = load_settings()
    # What is wrong with the list is told here in one line, and not by every process at its start.
    endpoints(settings)
    hold_lifeline()
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=host or settings.host,
        port=port or settings.port,
        workers=workers,
        server_header=False,
        # A stream that is still open must not hold up a restart for ever.
        timeout_graceful_shutdown=10,
    )


@click.command()
def worker() -> None:
    """Run a worker: it claims jobs and trains them, one at a time. One for each device."""
    _become("worker")


@click.command()
def engine() -> None:
    """Run the built-in inference engine."""
    _become("worker.serving.server")


@click.command()
@click.argument("revision", default="head")
@click.option("--down", is_flag=True, help="Go down to the revision; `base` drops every table.")
def migrate(revision: str, down: bool) -> None:
    """Bring the database to the newest schema, or to REVISION."""
    database = open_database(load_settings().database_url)
    if down:
        _refuse_while_running(database)
        downgrade(database, revision)
    else:
        upgrade(database, revision)


def _refuse_while_running(database: Database) -> None:
    with database.read() as connection:
        left = locks.seconds_left(connection, LOCK) if current_revision(connection) else None
    if left is not None and left > 0:
        raise Unavailable(
            f"the service is running, or ended less than {LOCK_TTL_SECONDS:.0f} s ago: stop it "
            "before its tables are taken away"
        )


def _become(module: str) -> None:
    # By name: this side of the house never imports the one that holds the devices.
    os.execv(sys.executable, [sys.executable, "-m", module])
