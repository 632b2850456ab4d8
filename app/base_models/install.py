"""Installing a base model: fetch, convert if need be, and move into place all at once."""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.base_models.catalogue import BaseModel
from app.base_models.sources import SOURCES
from app.domain.errors import InvalidInput, Unavailable
from app.domain.registry import resolve

# Converting needs torch, which this side of the house never imports: it runs as a process.
_CONVERTER = "worker.trunk.convert_gguf"
_RECORD = "tunesmith.json"


@dataclass(frozen=True, slots=True)
class InstalledBaseModel:
    """A base model whose safetensors are on this machine.

    Attributes:
        directory: holds config.json, *.safetensors, the tokenizer and the chat template.
        revision: identifies the weights; two installations with the same revision are equal.
    """

    id: str
    name: str
    directory: Path
    revision: str
    context_length: int


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
    )


def _install(model: BaseModel, models_dir: Path) -> InstalledBaseModel:
    scheme, _, reference = model.source.partition(":")
    scratch = Path(tempfile.mkdtemp(dir=models_dir, prefix=".incoming-"))
    try:
        resolve(SOURCES[scheme])(reference, model.revision, model.sha256, scratch)
        for gguf in scratch.glob("*.gguf"):
            _convert(gguf, scratch)
            gguf.unlink()
        _check(model, scratch)
        record = {"id": model.id, "source": model.source, "revision": model.revision}
        (scratch / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        directory = _directory(model, models_dir)
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch.chmod(0o755)
        scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    installed = find_installed(model, models_dir)
    assert installed is not None
    return installed


def _convert(gguf: Path, into: Path) -> None:
    command = [sys.executable, "-m", _CONVERTER, str(gguf), str(into)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        raise Unavailable(f"cannot convert {gguf.name} to safetensors: {reason[0]}")


def _check(model: BaseModel, directory: Path) -> None:
    if not (directory / "config.json").exists() or not list(directory.glob("*.safetensors")):
        raise InvalidInput(f"{model.source} holds no config.json with *.safetensors")
    config = json.loads((directory / "config.json").read_text())
    if "auto_map" in config:
        raise InvalidInput(f"{model.source} wants to run code of its own (auto_map): refused")


def _directory(model: BaseModel, models_dir: Path) -> Path:
    return models_dir / model.id.replace("/", "--") / _revision(model)[:16]


def _revision(model: BaseModel) -> str:
    identity = json.dumps([model.source, model.revision, model.sha256])
    return hashlib.sha256(identity.encode()).hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
