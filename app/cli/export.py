"""`tunesmith export`: a fine-tuned model as files in a directory, through the API."""

import time
from pathlib import Path
from typing import Any

import click
import httpx

from app.domain.errors import DomainError, ExportFailed, Unavailable
from app.domain.exports import EXPORT_FORMATS
from app.settings import load_settings

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 60.0


@click.command()
@click.argument("model")
@click.option(
    "--format",
    "name",
    required=True,
    type=click.Choice(list(EXPORT_FORMATS)),
    help="What to make of it.",
)
@click.option("--quantization", default=None, help="Number format (default: the format's first).")
@click.option(
    "--into",
    default=Path(),
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the files; made if it is not there.",
)
@click.option("--api-key", envvar="TUNESMITH_API_KEY", required=True, help="A project's key.")
@click.option("--base-url", default=None, help="Of the API (default: API_HOST and API_PORT).")
def export(
    model: str,
    name: str,
    quantization: str | None,
    into: Path,
    api_key: str,
    base_url: str | None,
) -> None:
    """Export MODEL, wait for it, and download its files.

    MODEL is the name of a fine-tuned model, ft:…, or of a checkpoint's.
    """
    settings = load_settings()
    headers = {"Authorization": f"Bearer {api_key}"}
    root = (base_url or f"http://{settings.host}:{settings.port}/v1").rstrip("/")
    asked = {"model": model, "format": name, "quantization": quantization}
    with httpx.Client(base_url=root, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        made = _finished(http, _object(http, "POST", "/exports", json=asked))
        into.mkdir(parents=True, exist_ok=True)
        for file_id in made["result_files"]:
            click.echo(str(_download(http, file_id, into)))
    found = made["verification"]
    click.echo(
        f"loaded back by {found['method']}: relative difference {found['relative_difference']:.2g} "
        f"over {found['tokens']} positions"
    )


def _finished(http: httpx.Client, made: dict[str, Any]) -> dict[str, Any]:
    while made["status"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        made = _object(http, "GET", f"/exports/{made['id']}")
    if made["status"] != "succeeded":
        told = made["error"]["message"] if made["error"] else f"the export was {made['status']}"
        raise ExportFailed(told)
    return made


def _download(http: httpx.Client, file_id: str, into: Path) -> Path:
    # A name of the server's, and so without a way out of the directory; made sure of here.
    filename = Path(_object(http, "GET", f"/files/{file_id}")["filename"]).name
    path = into / filename
    draft = path.with_name(f".{filename}.part")
    with http.stream("GET", f"/files/{file_id}/content") as answer, draft.open("wb") as file:
        if answer.status_code != 200:
            raise Unavailable(f"{filename} cannot be downloaded: status {answer.status_code}")
        for chunk in answer.iter_bytes():
            file.write(chunk)
    draft.replace(path)
    return path


def _object(http: httpx.Client, method: str, path: str, **more: Any) -> dict[str, Any]:
    try:
        answer = http.request(method, path, **more)
    except httpx.HTTPError as error:
        raise Unavailable(f"the API at {http.base_url} does not answer: {error}") from error
    if answer.status_code != 200:
        raise DomainError(_told(answer))
    found: dict[str, Any] = answer.json()
    return found


def _told(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the API answered with status {answer.status_code}"
