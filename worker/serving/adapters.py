"""Adapters as files: where they may lie, and whether they fit the base model they are served with.

The adapter directory of a checkpoint has a manifest of what it was trained with: base model and
revision, tokenizer, chat template; and the task, where it is another than text generation. All of
it is checked before the first answer, because an adapter under another tokenizer or template
answers fluently and wrongly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from app.domain.tasks import TEXT_GENERATION
from worker.serving.digests import sha256_of
from worker.task_file import TASK_NAME, TaskFile
from worker.trunk.listing import LISTING_NAME, Damaged, verify_listing
from worker.trunk.peft_format import CONFIG_NAME, WEIGHTS_NAME

T = TypeVar("T")

# Returns the SHA-256 of a file.
DigestOf = Callable[[Path], str]

MANIFEST_NAME = "manifest.json"
TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_NAME = "tokenizer.json"


class BaseIdentity(msgspec.Struct, frozen=True):
    """The base model that an adapter was trained on."""

    id: str
    name_or_path: str
    revision: str


class Manifest(msgspec.Struct, frozen=True):
    """The part of an adapter's manifest that serving it depends on."""

    format_version: Literal[1]
    base_model: BaseIdentity
    tokenizer_sha256: str | None  # Models of images have no tokenizer.
    chat_template_sha256: str | None
    task: str = TEXT_GENERATION


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter directory whose files are what they claim to be.

    Attributes:
        base_name: id or name of its base model.
        manifest: None for an adapter that was not trained here.
        chat_template: the one it was trained with; None leaves the base model's.
        digest: identifies its content.
        task_file: what a task beside text generation keeps; None for text generation.
    """

    base_name: str
    manifest: Manifest | None
    chat_template: str | None
    digest: str
    task_file: TaskFile | None = None


def locate_adapter(root: Path, path: str) -> Path:
    """Return the directory that `path` names. Raises: InvalidInput, unless it is below `root`."""
    refusal = InvalidInput(
        "'lora_path' is not a directory that adapters may be loaded from", param="lora_path"
    )
    try:
        directory = (root / path).resolve()
        is_allowed = root in directory.parents and directory.is_dir()
    except (OSError, ValueError, RuntimeError):  # Too long, a null byte, a circle of links.
        raise refusal from None
    # What a link inside the directory points to could lie anywhere.
    if not is_allowed or any(file.is_symlink() for file in directory.rglob("*")):
        raise refusal
    return directory


def purpose_of(directory: Path) -> tuple[str, str | None]:
    """Return the task that an adapter says to be for, and the id of its base model.

    Whether it is right is yet to be checked. None where no manifest says it.
    """
    try:
        manifest = (directory / MANIFEST_NAME).read_bytes()
        purpose = msgspec.json.decode(manifest, type=_Purpose)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return TEXT_GENERATION, None
    return purpose.task, purpose.base_model.id if purpose.base_model is not None else None


def inspect_adapter(directory: Path, digest_of: DigestOf = sha256_of) -> AdapterFiles:
    """Check an adapter's files against its checkpoint's listing and its manifest.

    Args:
        digest_of: one that remembers saves reading a file twice.

    Raises:
        InvalidInput: a file is missing, damaged or not listed, or the manifest cannot be read.
    """
    _check_listing(directory, digest_of)
    if not (directory / MANIFEST_NAME).exists():
        return AdapterFiles(
            base_name=_configured_base(directory),
            manifest=None,
            chat_template=None,
            digest=digest_of(directory / WEIGHTS_NAME),
        )
    manifest = _read_json(directory / MANIFEST_NAME, Manifest)
    if manifest.tokenizer_sha256 is not None:
        _check_file(directory / TOKENIZER_NAME, manifest.tokenizer_sha256, digest_of)
    template = None
    if manifest.chat_template_sha256 is not None:
        _check_file(directory / TEMPLATE_NAME, manifest.chat_template_sha256, digest_of)
        template = (directory / TEMPLATE_NAME).read_bytes().decode()
    return AdapterFiles(
        base_name=manifest.base_model.id,
        manifest=manifest,
        chat_template=template,
        digest=digest_of(directory / MANIFEST_NAME),
        task_file=None if manifest.task == TEXT_GENERATION else _task_file(directory, manifest),
    )


def check_fits(
    adapter: AdapterFiles, base: InstalledBaseModel, digest_of: DigestOf = sha256_of
) -> None:
    """Compare what an adapter was trained with and what it would be served with.

    Raises:
        InvalidInput: saying what differs.
    """
    manifest = adapter.manifest
    if manifest is None:
        if adapter.base_name not in (base.id, base.name):
            raise _mismatch("base model", adapter.base_name, base.name)
        return
    if manifest.base_model.id != base.id:
        raise _mismatch("base model", manifest.base_model.id, base.id)
    if manifest.base_model.revision != base.revision:
        raise _mismatch("base model's revision", manifest.base_model.revision, base.revision)
    path = base.directory / TOKENIZER_NAME
    tokenizer = digest_of(path) if path.exists() else None
    if manifest.tokenizer_sha256 != tokenizer:
        raise _mismatch("tokenizer", manifest.tokenizer_sha256, tokenizer)


class _Purpose(msgspec.Struct):
    """The part of a manifest that says how to read the rest of its directory."""

    task: str = TEXT_GENERATION
    base_model: BaseIdentity | None = None


def _task_file(directory: Path, manifest: Manifest) -> TaskFile:
    task_file = _read_json(directory / TASK_NAME, TaskFile)
    if task_file.task != manifest.task:
        raise _damaged(f"{TASK_NAME} is for {task_file.task}, {MANIFEST_NAME} for {manifest.task}")
    return task_file


def _check_listing(directory: Path, digest_of: DigestOf) -> None:
    if _is_foreign(directory):
        return
    try:
        verify_listing(directory.parent, directory.name, digest_of)
    except Damaged as error:
        raise _damaged(str(error)) from error


def _is_foreign(directory: Path) -> bool:
    """Say whether an adapter was made elsewhere: ours have a manifest, and a list beside them."""
    has_list = (directory.parent / LISTING_NAME).exists()
    return not has_list and not (directory / MANIFEST_NAME).exists()


def _configured_base(directory: Path) -> str:
    config: Mapping[str, Any] = _read_json(directory / CONFIG_NAME, dict[str, Any])
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"{CONFIG_NAME} names no base model", param="lora_path")
    return name


def _check_file(path: Path, sha256: str, digest_of: DigestOf) -> None:
    if not path.is_file():
        raise _damaged(f"{path.name} is missing")
    if digest_of(path) != sha256:
        raise _damaged(f"{path.name} is not what was written")


def _read_json(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}", param="lora_path") from error


def _damaged(what: str) -> InvalidInput:
    return InvalidInput(
        f"the adapter is damaged: {what}", param="lora_path", code="checkpoint_corrupt"
    )


def _mismatch(what: str, trained: str | None, served: str | None) -> InvalidInput:
    return InvalidInput(
        f"the adapter was trained with another {what}: {trained}, not {served}",
        param="lora_path",
        code="adapter_mismatch",
    )
