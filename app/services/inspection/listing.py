"""Are an adapter's files there, and as long as the list of its checkpoint says?"""

from pathlib import Path

import msgspec

from app.services.inspection.findings import reason_of

LISTING_NAME = "files.json"
MANIFEST_NAME = "manifest.json"


class _ListedFile(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


def damage_of(directory: Path) -> str | None:
    """Say how an adapter differs from the list beside it, or None: by names and sizes alone."""
    try:
        return _difference(directory)
    except OSError as error:
        return f"it cannot be read: {reason_of(error)}"


def _difference(directory: Path) -> str | None:
    try:
        content = (directory.parent / LISTING_NAME).read_bytes()
    except FileNotFoundError:
        # An adapter that was made elsewhere has neither list nor manifest.
        is_foreign = not (directory / MANIFEST_NAME).exists()
        return None if is_foreign else f"{LISTING_NAME} is missing"
    try:
        files = msgspec.json.decode(content, type=dict[str, _ListedFile])
    # Bytes that are no text are no DecodeError of msgspec's.
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"{LISTING_NAME} is not a list of files: {reason_of(error)}"
    prefix = f"{directory.name}/"
    listed = {name: file.bytes for name, file in files.items() if name.startswith(prefix)}
    present = {
        path.relative_to(directory.parent).as_posix(): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }
    for name in sorted(listed | present):
        if name not in present:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} is not listed in {LISTING_NAME}"
        if present[name] != listed[name]:
            return f"{name} has {present[name]} of {listed[name]} bytes"
    return None
