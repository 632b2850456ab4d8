"""`tunesmith openapi`: the OpenAPI document, as it is committed in openapi.json."""

import json

import click

from app.settings import load_settings


@click.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from app.main import create_app  # noqa: PLC0415 - the other commands start faster without it.

    click.echo(json.dumps(create_app(load_settings()).openapi(), indent=2, ensure_ascii=False))
