"""A zip of a manifest and the images or audio that it names. Nothing is unpacked to disk."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from app.domain.datasets.faults import WrongRecord, quoted, quoted_list, wrong_file
from app.domain.datasets.limits import MAX_ARCHIVE_BYTES, MAX_MEDIA_BYTES
from app.domain.datasets.zips import DAMAGED, damage_told, is_of_macos, leads_out, open_zip

_MANIFESTS = frozenset(
    f"{stem}.{suffix}" for stem in ("manifest", "metadata") for suffix in ("jsonl", "csv", "tsv")
)
_EXPECTED = "a file manifest.jsonl or manifest.csv at the top, which names the media files"


@dataclass(frozen=True, slots=True)
class OpenArchive:
    """A zip that is being read.

    Attributes:
        manifest: the records, as text.
        manifest_name: where it is in the zip.
        files: what the manifest's paths lead to.
    """

    manifest: BinaryIO
    manifest_name: str
    files: "ArchivedFiles"


def open_archive(stream: BinaryIO) -> OpenArchive:
    """Open a zip and find its manifest, at the top or in a folder at the top.

    Raises:
        InvalidFile: it is damaged, encrypted, too large or has no manifest.
    """
    archive, entries = open_zip(stream, MAX_ARCHIVE_BYTES)
    manifest = _find_manifest(
        [entry.filename for entry in entries if not entry.filename.endswith("/")]
    )
    folder = manifest[: manifest.rfind("/") + 1]
    with damage_told():
        content = archive.open(manifest)
    return OpenArchive(
        manifest=io.BufferedReader(_Manifest(content)),
        manifest_name=manifest,
        files=ArchivedFiles(archive, folder),
    )


class ArchivedFiles:
    """The files of a zip, as its manifest names them.

    Args:
        folder: of the manifest, which paths start from: empty, or ending with a slash.
    """

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._bytes_left = MAX_ARCHIVE_BYTES

    def read(self, path: str) -> bytes:
        """Return the content of one file. Raises: WrongRecord."""
        entry = self._entry(path)
        if entry.file_size > MAX_MEDIA_BYTES:
            raise WrongRecord(f"{quoted(path)} is larger than {MAX_MEDIA_BYTES:,} bytes")
        self._bytes_left -= entry.file_size
        if self._bytes_left < 0:
            raise WrongRecord(
                "the media, each counted as often as the manifest names it, are larger than "
                f"{MAX_ARCHIVE_BYTES:,} bytes"
            )
        try:
            with self._archive.open(entry) as member:
                return member.read(MAX_MEDIA_BYTES)
        except DAMAGED as error:
            raise WrongRecord(f"{quoted(path)} is damaged in the zip: {error}") from None

    def _entry(self, path: str) -> zipfile.ZipInfo:
        if "\\" in path:
            raise WrongRecord(f"{quoted(path)} has backslashes; paths in a zip have slashes")
        if leads_out(path):
            raise WrongRecord(
                f"{quoted(path)} leads out of the zip; expected a path from the manifest's folder"
            )
        try:
            return self._archive.getinfo(self._folder + path.removeprefix("./"))
        except KeyError:
            raise WrongRecord(f"{quoted(path)} is not in the zip; {self._similar(path)}") from None

    def _similar(self, path: str) -> str:
        name = PurePosixPath(path).name.lower()
        for entry in self._archive.namelist():
            if PurePosixPath(entry).name.lower() == name and not is_of_macos(entry):
                return f"it has {quoted(entry.removeprefix(self._folder))}"
        return "paths start from the manifest's folder"


def _find_manifest(names: Sequence[str]) -> str:
    for depth in (0, 1):
        found = [
            name
            for name in names
            if name.count("/") == depth and PurePosixPath(name).name.lower() in _MANIFESTS
        ]
        if len(found) > 1:
            raise wrong_file(f"the zip has more than one manifest: {quoted_list(found)}")
        if found:
            return found[0]
    if "[Content_Types].xml" in names:
        raise wrong_file("this is a document of Excel or Word; save the sheet as CSV UTF-8")
    has = f"it has {quoted_list(names, 4)}" if names else "it is empty"
    raise wrong_file(f"the zip has no manifest; expected {_EXPECTED}, but {has}")


class _Manifest(io.RawIOBase):
    """The manifest, whose damage is told in our words."""

    def __init__(self, content: IO[bytes]) -> None:
        super().__init__()
        self._content = content

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with damage_told():
            return self._content.seek(offset, whence)

    def tell(self) -> int:
        return self._content.tell()

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        with damage_told():
            chunk = self._content.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)
