"""Installing a base model: fetch, convert if need be, and move into place all at once."""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.base_models.catalogue import BaseModel
from app.base_models.converters import convert
from app.base_models.sources import SOURCES
from app.domain.errors import InvalidInput
from app.domain.registry import resolve
from app.domain.tasks import TEXT_GENERATION

_RECORD = "tunesmith.json"


@dataclass(frozen=True, slots=True)
class InstalledBaseModel:
    """A base model whose safetensors are on this machine.

    Attributes:
        directory: holds config.json, *.safetensors, the tokenizer and the chat template.
        revision: identifies the weights; two installations with the same revision are equal.
        tasks: that it can be fine-tuned for.
    """

    id: str
    name: str
    directory: Path
    revision: str
    context_length: int
    tasks: tuple[str, ...] = (TEXT_GENERATION,)


def ensure_installed(model: BaseModel, models_dir: Path) -> InstalledBaseModel:
    """Return the model, fetching it first if this machine does not have it.

    Any number of processes may ask at once; one fetches, the others wait for it.

    Raises:
        Unavailable: its source cannot be reached.
        InvalidInput: its source does not hold what the catalogue says.
    """
    installed = find_installed(model, models_dir)
    if installed is not None:
        return installed
    models_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(models_dir / ".lock"):
        return find_installed(model, models_dir) or _install(model, models_dir)


def find_installed(model: BaseModel, models_dir: Path) -> InstalledBaseModel | None:
    """Return the model if this machine has it."""
    directory = _directory(model, models_dir)
    if not (directory / _RECORD).exists():
        return None
    return InstalledBaseModel(
        id=model.id,
        name=model.name,
        directory=directory,
        revision=_revision(model),
        context_length=model.context_length,
        tasks=model.tasks,
    )


def _install(model: BaseModel, models_dir: Path) -> InstalledBaseModel:
    scratch = Path(tempfile.mkdtemp(dir=models_dir, prefix=".incoming-"))
    try:
        fetched = _fetched(model, scratch)
        incoming = _converted(model, fetched, scratch / "converted")
        _check(model, incoming)
        (incoming / _RECORD).write_text(json.dumps(_record(model), indent=2) + "\n")
        directory = _directory(model, models_dir)
        directory.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    installed = find_installed(model, models_dir)
    assert installed is not None
    return installed


def _fetched(model: BaseModel, scratch: Path) -> Path:
    together = scratch / "fetched"
    together.mkdir()
    for number, (source, sha256) in enumerate(_sources(model)):
        scheme, _, reference = source.partition(":")
        # Each in a directory of its own, so that none can write through another's link.
        alone = scratch / f"source-{number}"
        alone.mkdir()
        resolve(SOURCES[scheme])(reference, model.revision, sha256, alone)
        for path in alone.iterdir():
            if (together / path.name).exists():
                raise InvalidInput(f"{source} holds {path.name!r}, as another source does")
            path.rename(together / path.name)
    return together


def _converted(model: BaseModel, fetched: Path, into: Path) -> Path:
    converter = model.convert or ("gguf" if list(fetched.glob("*.gguf")) else None)
    if converter is None:
        return fetched
    into.mkdir()
    convert(converter, fetched, into)
    for path in into.glob("*.safetensors"):
        path.chmod(0o644)  # Written for its owner alone, but read by every process.
    return into


def _check(model: BaseModel, directory: Path) -> None:
    if not (directory / "config.json").exists() or not list(directory.glob("*.safetensors")):
        raise InvalidInput(f"{model.source} holds no config.json with *.safetensors")
    config = json.loads((directory / "config.json").read_text())
    if "auto_map" in config:
        raise InvalidInput(f"{model.source} wants to run code of its own (auto_map): refused")


def _directory(model: BaseModel, models_dir: Path) -> Path:
    return models_dir / model.id.replace("/", "--") / _revision(model)[:16]


def _revision(model: BaseModel) -> str:
    identity: list[Any] = [model.source, model.revision, model.sha256]
    # Absent, they are left out: a model that was installed before they existed stays the same one.
    if model.further_sources or model.convert:
        identity += [_sources(model)[1:], model.convert]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _record(model: BaseModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "source": model.source,
        "further_sources": [one.source for one in model.further_sources],
        "revision": model.revision,
        "convert": model.convert,
    }


def _sources(model: BaseModel) -> list[tuple[str, str | None]]:
    further = [(one.source, one.sha256) for one in model.further_sources]
    return [(model.source, model.sha256), *further]


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
