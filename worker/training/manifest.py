"""What an adapter was trained with, so that it is served with the same; no times, no host names."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from app.domain.job_spec import JobSpec
from worker.task_file import TASK_NAME, TaskFile
from worker.trunk.device import DeviceProfile
from worker.trunk.trunk import Trunk

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TEMPLATE_NAME = "chat_template.jinja"

_PREPARATION_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
_PACKAGES = ("peft", "tokenizers", "torch", "transformers", "tunesmith")


class BaseModelRef(msgspec.Struct, frozen=True):
    """A base model on this machine.

    Attributes:
        id: in the operator's catalogue.
        directory: in Hugging Face's layout.
        revision: pins the content.
        name_or_path: its name on the hub.
    """

    id: str
    directory: str
    revision: str
    name_or_path: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run trains with.

    Attributes:
        directory: of the base model.
        template: the chat template; None where there is none.
        task_file: of a task that keeps more beside its adapter than text generation does.
    """

    spec: JobSpec
    base: BaseModelRef
    directory: Path
    profile: DeviceProfile
    template: str | None = None
    task_file: TaskFile | None = None

    def write(self, directory: Path, step: int) -> None:
        """Put what inputs are prepared with, and `manifest.json`, beside an adapter.

        The files of tokenizer and processor are the base model's, byte for byte.
        """
        for name in _PREPARATION_FILES:
            if (self.directory / name).exists():
                (directory / name).write_bytes((self.directory / name).read_bytes())
        template = self.template
        if template is not None:
            (directory / TEMPLATE_NAME).write_bytes(template.encode())
        if self.task_file is not None:
            _write_json(directory / TASK_NAME, self.task_file)
        tokenizer = directory / "tokenizer.json"
        spec, base = self.spec, self.base
        manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "job_id": spec.job_id,
            "task": spec.task,
            "step": step,
            "base_model": {
                "id": base.id,
                "name_or_path": base.name_or_path,
                "revision": base.revision,
            },
            "tokenizer_sha256": _sha256(tokenizer.read_bytes()) if tokenizer.exists() else None,
            "chat_template_sha256": None if template is None else _sha256(template.encode()),
            "training_file": _dataset(spec.training_file.file_id, spec.training_file.sha256),
            "validation_file": spec.validation_file
            and _dataset(spec.validation_file.file_id, spec.validation_file.sha256),
            "spec": spec,
            "packages": {name: _version(name) for name in _PACKAGES},
            "device": {
                "device": self.profile.device,
                "dtype": self.profile.dtype_name,
                "threads": self.profile.threads,
            },
        }
        _write_json(directory / MANIFEST_NAME, manifest)


def chat_template(trunk: Trunk) -> str | None:
    """Return the base model's chat template, if it has one."""
    if not trunk.tokenizer.chat_template:
        return None
    return str(trunk.tokenizer.get_chat_template())


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _dataset(file_id: str, sha256: str) -> dict[str, str]:
    return {"file_id": file_id, "sha256": sha256}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
