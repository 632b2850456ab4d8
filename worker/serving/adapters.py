"""Adapters as files: where they may lie, and whether they fit the base model they are served with.

The adapter directory of a checkpoint has a manifest of what it was trained with: base model and
revision, tokenizer, chat template. All of it is checked before a token is generated, because an
adapter under another tokenizer or template answers fluently and wrongly.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from worker.trunk.listing import LISTING_NAME, Damaged, verify_listing
from worker.trunk.peft_format import CONFIG_NAME, WEIGHTS_NAME

T = TypeVar("T")

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
    tokenizer_sha256: str
    chat_template_sha256: str | None


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter directory whose files are what they claim to be.

    Attributes:
        base_name: id or name of its base model.
        manifest: None for an adapter that was not trained here.
        chat_template: the one it was trained with; None leaves the base model's.
        digest: identifies its content.
    """

    base_name: str
    manifest: Manifest | None
    chat_template: str | None
    digest: str


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


def inspect_adapter(directory: Path) -> AdapterFiles:
    """Check an adapter's files against its checkpoint's listing and its manifest.

    Raises:
        InvalidInput: a file is missing, damaged or not listed, or the manifest cannot be read.
    """
    _check_listing(directory)
    if not (directory / MANIFEST_NAME).exists():
        return AdapterFiles(
            base_name=_configured_base(directory),
            manifest=None,
            chat_template=None,
            digest=_sha256(directory / WEIGHTS_NAME),
        )
    manifest = _read_json(directory / MANIFEST_NAME, Manifest)
    _check_file(directory / TOKENIZER_NAME, manifest.tokenizer_sha256)
    template = None
    if manifest.chat_template_sha256 is not None:
        _check_file(directory / TEMPLATE_NAME, manifest.chat_template_sha256)
        template = (directory / TEMPLATE_NAME).read_bytes().decode()
    return AdapterFiles(
        base_name=manifest.base_model.id,
        manifest=manifest,
        chat_template=template,
        digest=_sha256(directory / MANIFEST_NAME),
    )


def check_fits(adapter: AdapterFiles, base: InstalledBaseModel) -> None:
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
    tokenizer = _sha256(base.directory / TOKENIZER_NAME)
    if manifest.tokenizer_sha256 != tokenizer:
        raise _mismatch("tokenizer", manifest.tokenizer_sha256, tokenizer)


def _check_listing(directory: Path) -> None:
    if _is_foreign(directory):
        return
    try:
        verify_listing(directory.parent, part=directory.name)
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


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise _damaged(f"{path.name} is missing")
    if _sha256(path) != sha256:
        raise _damaged(f"{path.name} is not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}", param="lora_path") from error


def _damaged(what: str) -> InvalidInput:
    return InvalidInput(
        f"the adapter is damaged: {what}", param="lora_path", code="checkpoint_corrupt"
    )


def _mismatch(what: str, trained: str, served: str) -> InvalidInput:
    return InvalidInput(
        f"the adapter was trained with another {what}: {trained}, not {served}",
        param="lora_path",
        code="adapter_mismatch",
    )
