"""The `tunesmith` command: run the processes, and the operator's few chores."""

import sys

import click

from app.cli import demo, doctor, export, keys, models, openapi, processes, up
from app.domain.errors import DomainError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tunesmith")
def cli() -> None:
    """Tunesmith: fine-tuning as a service that you run yourself."""


cli.add_command(up.up)
cli.add_command(processes.api)
cli.add_command(processes.worker)
cli.add_command(processes.engine)
cli.add_command(processes.migrate)
cli.add_command(keys.keys)
cli.add_command(models.models)
cli.add_command(export.export)
cli.add_command(doctor.doctor)
cli.add_command(demo.demo)
cli.add_command(openapi.openapi)


def main() -> None:
    """Run the command; a domain error is told in one line, without a traceback."""
    try:
        cli()
    except DomainError as error:
        sys.exit(f"tunesmith: {error.message}")
