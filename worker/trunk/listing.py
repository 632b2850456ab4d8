"""The list of a checkpoint's files and their digests, by which damage is found."""

import hashlib
from pathlib import Path

import msgspec

from app.domain.errors import TrainingFailed

LISTING_NAME = "files.json"


class ListedFile(msgspec.Struct, frozen=True):
    """What a file must be."""

    sha256: str
    bytes: int


def write_listing(directory: Path) -> str:
    """Write the list of all files below a directory into it, and return the list's SHA-256."""
    files = {
        path.relative_to(directory).as_posix(): ListedFile(_sha256(path), path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    listing = msgspec.json.format(msgspec.json.encode(files, order="sorted"), indent=2)
    (directory / LISTING_NAME).write_bytes(listing)
    return hashlib.sha256(listing).hexdigest()


def verify_listing(directory: Path) -> str:
    """Compare every file below a directory with the list in it, and return the list's SHA-256.

    Raises:
        TrainingFailed: a file is missing, changed or not listed (`checkpoint_corrupt`).
    """
    try:
        listing = (directory / LISTING_NAME).read_bytes()
        files = msgspec.json.decode(listing, type=dict[str, ListedFile])
    except (OSError, msgspec.DecodeError) as error:
        raise corrupt(f"{LISTING_NAME} cannot be read") from error
    present = {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    }
    if unexpected := sorted((files.keys() | {LISTING_NAME}) ^ present):
        raise corrupt(f"{unexpected[0]} is missing or not listed")
    for name, listed in files.items():
        path = directory / name
        if path.stat().st_size != listed.bytes or _sha256(path) != listed.sha256:
            raise corrupt(f"{name} is not what was written")
    return hashlib.sha256(listing).hexdigest()


def corrupt(what: str) -> TrainingFailed:
    """Return the error of a checkpoint that cannot be resumed from."""
    return TrainingFailed(f"the checkpoint is damaged: {what}", code="checkpoint_corrupt")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
