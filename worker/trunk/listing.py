"""The list of a checkpoint's files and their digests, by which damage is found."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

LISTING_NAME = "files.json"


class Damaged(Exception):
    """Files are not what was written; the text says which."""


class ListedFile(msgspec.Struct, frozen=True):
    """What a file must be."""

    sha256: str
    bytes: int


def write_listing(directory: Path) -> str:
    """Write the list of all files below a directory into it, and return the list's SHA-256."""
    files = {
        name: ListedFile(_sha256(directory / name), (directory / name).stat().st_size)
        for name in sorted(_files_below(directory))
    }
    listing = msgspec.json.format(msgspec.json.encode(files, order="sorted"), indent=2)
    (directory / LISTING_NAME).write_bytes(listing)
    return hashlib.sha256(listing).hexdigest()


def verify_listing(
    directory: Path,
    part: str | None = None,
    digest_of: Callable[[Path], str] | None = None,
) -> str:
    """Compare files with their list, and return the list's SHA-256.

    Args:
        directory: holds the list.
        part: name of the subdirectory to compare; the rest of what is listed may be gone.
        digest_of: returns the SHA-256 of a file; None reads it.

    Raises:
        Damaged: a file is missing, changed or not listed, or the list cannot be read.
    """
    try:
        listing = (directory / LISTING_NAME).read_bytes()
        files = msgspec.json.decode(listing, type=dict[str, ListedFile])
    # Bytes that are no text are no DecodeError of msgspec's.
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{LISTING_NAME} cannot be read") from error
    prefix = f"{part}/" if part is not None else ""
    listed = {name for name in files if name.startswith(prefix)}
    present = {name for name in _files_below(directory) if name.startswith(prefix)}
    if missing := sorted(listed - present):
        raise Damaged(f"{missing[0]} is missing")
    if unlisted := sorted(present - listed - {LISTING_NAME}):
        raise Damaged(f"{unlisted[0]} is not listed in {LISTING_NAME}")
    digest_of = digest_of or _sha256
    for name in sorted(listed):
        path = directory / name
        if path.stat().st_size != files[name].bytes or digest_of(path) != files[name].sha256:
            raise Damaged(f"{name} is not what was written")
    return hashlib.sha256(listing).hexdigest()


def _files_below(directory: Path) -> set[str]:
    return {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
