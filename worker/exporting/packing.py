"""Packing an export: checksums, and archives that are the same bytes whoever makes them."""

import gzip
import hashlib
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

CHECKSUMS_NAME = "SHA256SUMS"

# Zips cannot tell times before 1980, wherever on Earth: what was unpacked may be zipped again.
_EARLIEST_SECONDS = int(datetime(1980, 1, 2, tzinfo=UTC).timestamp())


def write_checksums(directory: Path) -> None:
    """Write the digests of a directory's files into it, for `sha256sum --check`."""
    lines = [
        f"{_sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in _files(directory)
    ]
    (directory / CHECKSUMS_NAME).write_text("".join(lines))


def pack(directory: Path, packing: Literal["tar.gz", "tar", "files"]) -> list[Path]:
    """Return what is to be stored of a directory: an archive beside it, or its files."""
    if packing == "files":
        return _files(directory)
    archive = directory.parent / f"{directory.name}.{packing}"
    with archive.open("wb") as file:
        if packing == "tar":
            _write_tar(directory, file)
        else:
            # Without a name and a time, so that another attempt makes the same bytes.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
                _write_tar(directory, compressed)
    return [archive]


def _write_tar(directory: Path, file: "gzip.GzipFile | object") -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for path in _files(directory):
            name = f"{directory.name}/{path.relative_to(directory).as_posix()}"
            member = tarfile.TarInfo(name)
            member.size, member.mode = path.stat().st_size, 0o644
            member.mtime = _EARLIEST_SECONDS
            with path.open("rb") as content:
                tar.addfile(member, content)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
