"""`tunesmith up`: the whole stack in the foreground of one terminal."""

import os
import sys

import click

from app.cli.stack import Interrupted, Stack, check_port_is_free, raise_on_signals
from app.db.database import open_database
from app.db.migrations import upgrade
from app.inference.endpoints import endpoints
from app.services.keys import create_first_key
from app.settings import Settings, load_settings

START_SECONDS = 180.0


@click.command()
@click.option("--quiet", is_flag=True, help="Keep the processes' output to their log files.")
def up(quiet: bool) -> None:
    """Run api, engine and worker together until Ctrl-C; those that die are restarted.

    ENGINES sets the number of engines: the API shares requests out among them.
    """
    settings = load_settings()
    endpoints(settings)
    check_port_is_free(settings.host, settings.port, "API_PORT")
    for number in range(settings.engines):
        check_port_is_free("127.0.0.1", settings.engine_port + number, "ENGINE_PORT")
    key = _first_key(settings)
    stack = Stack(settings, os.environ, echo=None if quiet else click.echo, tell=_tell)
    raise_on_signals()
    try:
        stack.start()
        stack.wait_until_ready(START_SECONDS)
        _banner(stack, key)
        stack.wait()
    except Interrupted:
        _tell("stopping; a running job is kept and goes on at the next start")
    finally:
        stack.stop()


def _first_key(settings: Settings) -> str | None:
    database = open_database(settings.database_url)
    upgrade(database)
    with database.write() as connection:
        return create_first_key(connection, settings.organization)


def _banner(stack: Stack, key: str | None) -> None:
    shown = key or "(shown at the first start; `tunesmith keys create` makes another)"
    _tell(f"ready\n\n  base_url  {stack.base_url}\n  api_key   {shown}\n  logs      {stack.logs}\n")


def _tell(text: str) -> None:
    click.echo(f"tunesmith: {text}", file=sys.stderr)
