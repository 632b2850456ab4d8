"""Reading zips that anyone may have made. Nothing is unpacked to disk here."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from app.domain.datasets.faults import quoted, wrong_file
from app.domain.datasets.limits import MAX_ARCHIVE_DIRECTORY_BYTES

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class _Outside(OSError):
    """A zip points outside of itself. Of the type that zipfile expects of a file's end."""


# What zipfile and zlib raise about a damaged zip. A disk's own OSError is not among them.
DAMAGED = (
    _Outside,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


def open_zip(stream: BinaryIO, max_bytes: int) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """Open a zip and list what is in it, without what macOS adds.

    Args:
        max_bytes: that it may unpack to.

    Raises:
        InvalidFile: it is damaged, encrypted, too large or has a path that leads out of it.
    """
    bounded = _Bounded(stream)
    with damage_told():
        try:
            archive = zipfile.ZipFile(cast(IO[bytes], bounded))
        except zipfile.BadZipFile:
            # zipfile takes an error of the disk for a file that is no zip.
            if bounded.failure is not None:
                raise bounded.failure from None
            raise
    entries = [entry for entry in archive.infolist() if not is_of_macos(entry.filename)]
    _check(entries, max_bytes)
    return archive, entries


def leads_out(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/")


def is_of_macos(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"


@contextmanager
def damage_told() -> Iterator[None]:
    """Tell of damage in our words. Raises: InvalidFile."""
    try:
        yield
    except DAMAGED as error:
        raise wrong_file(f"the zip is damaged: {error}") from None


def _check(entries: Sequence[zipfile.ZipInfo], max_bytes: int) -> None:
    for entry in entries:
        name = quoted(entry.filename)
        if entry.flag_bits & _ENCRYPTED:
            raise wrong_file(f"the zip is encrypted ({name}); make it without a password")
        if leads_out(entry.filename) or "\\" in entry.filename:
            raise wrong_file(f"the zip has the path {name}, which leads out of it")
        if entry.compress_type not in _METHODS:
            raise wrong_file(f"{name} in the zip is compressed in another way than deflate")
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise wrong_file(f"the zip unpacks to more than {max_bytes:,} bytes")


class _Bounded:
    """A zip's file, whose reads are bounded: its list of files is read by one of them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._length = stream.seek(0, io.SEEK_END)
        self.tell: Callable[[], int] = stream.tell
        self.failure: OSError | None = None

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        if not 0 <= start + offset <= self._length:
            raise _Outside("it points outside of itself")
        return self._stream.seek(start + offset)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = self._length - self.tell()
        if size > MAX_ARCHIVE_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"the list of its files is larger than {MAX_ARCHIVE_DIRECTORY_BYTES:,} bytes"
            )
        try:
            return self._stream.read(size)
        except OSError as error:
            self.failure = error
            raise
