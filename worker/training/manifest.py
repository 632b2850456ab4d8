"""What an adapter was trained with, so that it is served with the same; no times, no host names."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from app.domain.job_spec import JobSpec
from worker.trunk.device import DeviceProfile
from worker.trunk.trunk import Trunk

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TEMPLATE_NAME = "chat_template.jinja"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
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


def write_origin_of_trunk(
    directory: Path,
    step: int,
    *,
    spec: JobSpec,
    base: BaseModelRef,
    trunk: Trunk,
    profile: DeviceProfile,
) -> None:
    """Put the tokenizer, the chat template and `manifest.json` beside an adapter.

    The tokenizer's files are the base model's, byte for byte.
    """
    for name in _TOKENIZER_FILES:
        (directory / name).write_bytes((trunk.directory / name).read_bytes())
    template = chat_template(trunk)
    if template is not None:
        (directory / TEMPLATE_NAME).write_bytes(template.encode())
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "job_id": spec.job_id,
        "step": step,
        "base_model": {
            "id": base.id,
            "name_or_path": base.name_or_path,
            "revision": base.revision,
        },
        "tokenizer_sha256": _sha256((directory / "tokenizer.json").read_bytes()),
        "chat_template_sha256": None if template is None else _sha256(template.encode()),
        "training_file": _dataset(spec.training_file.file_id, spec.training_file.sha256),
        "validation_file": spec.validation_file
        and _dataset(spec.validation_file.file_id, spec.validation_file.sha256),
        "spec": spec,
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": {
            "device": profile.device,
            "dtype": profile.dtype_name,
            "threads": profile.threads,
        },
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST_NAME).write_bytes(text + b"\n")


def chat_template(trunk: Trunk) -> str | None:
    """Return the base model's chat template, if it has one."""
    if not trunk.tokenizer.chat_template:
        return None
    return str(trunk.tokenizer.get_chat_template())


def _dataset(file_id: str, sha256: str) -> dict[str, str]:
    return {"file_id": file_id, "sha256": sha256}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
