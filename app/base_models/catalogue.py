"""The operator's catalogue of base models: a TOML file, the only way a model can enter."""

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec

from app.base_models.architecture import Architecture
from app.base_models.converters import CONVERTERS
from app.base_models.sources import SOURCES
from app.domain.errors import InvalidInput, NotFound

DEFAULT_CATALOGUE = files("app.base_models") / "default_catalogue.toml"
DEFAULT_LEARNING_RATE = 2e-4

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True)
class FurtherSource:
    """One more place from which files of the same base model come."""

    source: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """One entry of the catalogue. The default file explains each field.

    Attributes:
        architecture: of the installed model; None while that is not known here.
    """

    id: str
    source: str
    revision: str
    sha256: str | None
    name: str
    tasks: tuple[str, ...]
    context_length: int
    learning_rate: float
    licence: str
    further_sources: tuple[FurtherSource, ...] = ()
    convert: str | None = None
    architecture: Architecture | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base models by id, in the order of the file."""

    models: Mapping[str, BaseModel]

    def get(self, model_id: str) -> BaseModel:
        """Return an entry. Raises: NotFound."""
        if model_id not in self.models:
            raise NotFound(
                f"The model {model_id!r} does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
            )
        return self.models[model_id]


def load_catalogue(path: Path) -> Catalogue:
    """Read the catalogue; while the operator has none, the default one.

    Raises:
        InvalidInput: the file is not a catalogue; the message names the entry and the field.
    """
    try:
        changed_at = path.stat().st_mtime_ns
    except FileNotFoundError:
        return _default_catalogue()
    return _read_catalogue(path, changed_at)


def parse_catalogue(text: str, origin: str) -> Catalogue:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{origin}: not valid TOML: {error}") from None
    entries = document.get("models", [])
    if not isinstance(entries, list):
        raise InvalidInput(f"{origin}: 'models' must be an array of tables, [[models]]")
    models: dict[str, BaseModel] = {}
    for number, entry in enumerate(entries, start=1):
        model = _entry(entry, f"{origin}: models[{number}]")
        if model.id in models:
            raise InvalidInput(f"{origin}: models[{number}]: id {model.id!r} is there already")
        models[model.id] = model
    return Catalogue(models)


def add_to_catalogue(path: Path, model: BaseModel) -> Catalogue:
    """Append an entry to the operator's file, which starts as a copy of the default one.

    Raises:
        InvalidInput: the id is there already, or a field is not what it must be.
    """
    text = path.read_text() if path.exists() else DEFAULT_CATALOGUE.read_text()
    text = text.rstrip("\n") + "\n\n" + _as_toml(model)
    catalogue = parse_catalogue(text, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".toml.new")
    draft.write_text(text)
    os.replace(draft, path)
    return catalogue


# Every request looks a model up: the file is parsed again only when it has changed.
@lru_cache(maxsize=4)
def _read_catalogue(path: Path, changed_at: int) -> Catalogue:
    return parse_catalogue(path.read_text(), str(path))


@lru_cache(maxsize=1)
def _default_catalogue() -> Catalogue:
    return parse_catalogue(DEFAULT_CATALOGUE.read_text(), "the default catalogue")


class _FurtherSource(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    sha256: str | None = None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    source: str
    tasks: list[str]
    context_length: Annotated[int, msgspec.Meta(ge=1)]
    licence: str
    revision: str = "main"
    sha256: str | None = None
    name: str | None = None
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = DEFAULT_LEARNING_RATE
    further_sources: list[_FurtherSource] = []
    convert: str | None = None


def _entry(fields: Any, where: str) -> BaseModel:
    try:
        entry = msgspec.convert(fields, _Entry)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace("`", "'").partition(" - at '$.")
        field = f"'{path}: " if path else ""
        raise InvalidInput(f"{where}: {field}{what}") from None
    if not math.isfinite(entry.learning_rate):
        raise InvalidInput(f"{where}: 'learning_rate' must be a finite number")
    if not _ID.fullmatch(entry.id) or ".." in entry.id or entry.id.startswith("ft:"):
        raise InvalidInput(f"{where}: 'id' may hold letters, digits, '.', '_', '-' and '/'")
    # A registry raises UnknownName, with the known ones.
    for source in (entry.source, *(one.source for one in entry.further_sources)):
        SOURCES[source.partition(":")[0]]
    if entry.convert is not None:
        CONVERTERS[entry.convert]
    return BaseModel(
        id=entry.id,
        source=entry.source,
        revision=entry.revision,
        sha256=entry.sha256,
        name=entry.name or entry.id,
        tasks=tuple(entry.tasks),
        context_length=entry.context_length,
        learning_rate=entry.learning_rate,
        licence=entry.licence,
        further_sources=tuple(
            FurtherSource(one.source, one.sha256) for one in entry.further_sources
        ),
        convert=entry.convert,
    )


def _as_toml(model: BaseModel) -> str:
    # JSON strings, numbers and arrays of strings are TOML too.
    fields = {
        "id": model.id,
        "source": model.source,
        "revision": model.revision,
        "sha256": model.sha256,
        "name": model.name,
        "tasks": list(model.tasks),
        "context_length": model.context_length,
        "learning_rate": model.learning_rate,
        "licence": model.licence,
        "convert": model.convert,
    }
    tables = [("models", fields)]
    for further in model.further_sources:
        tables.append(("models.further_sources", asdict(further)))
    return "\n".join(_as_table(name, entries) for name, entries in tables)


def _as_table(name: str, fields: Mapping[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items() if value is not None]
    return f"[[{name}]]\n" + "\n".join(lines) + "\n"
