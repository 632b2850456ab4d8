"""Storage in a directory of the local file system (or one that all hosts mount)."""

import errno
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from app.domain.errors import NotFound, StorageFull
from app.storage.port import StoredContent


class LocalStorage:
    """Files under one root; every write lands in `tmp/` first and is renamed into place."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._tmp = self._root / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def from_url(cls, url: str) -> Self:
        return cls(Path(unquote(urlsplit(url).path)))

    def put(self, key: str, chunks: Iterable[bytes]) -> StoredContent:
        target = self._path(key)
        digest, length = hashlib.sha256(), 0
        with _full_disk_as_storage_full():
            handle, name = tempfile.mkstemp(dir=self._tmp)
            try:
                with os.fdopen(handle, "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                        digest.update(chunk)
                        length += len(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                _rename(Path(name), target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return StoredContent(bytes=length, sha256=digest.hexdigest())

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError:
            raise NotFound(f"no content is stored under {key!r}") from None

    def publish(self, prefix: str, source: Path) -> None:
        with _full_disk_as_storage_full():
            for path in sorted(source.rglob("*")):
                _fsync(path)
            _fsync(source)
            _rename(source, self._path(prefix))

    def directory(self, prefix: str) -> Path:
        path = self._path(prefix)
        if not path.is_dir():
            raise NotFound(f"no content is stored under {prefix!r}")
        return path

    def scratch(self) -> Path:
        with _full_disk_as_storage_full():
            return Path(tempfile.mkdtemp(dir=self._tmp))

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> Sequence[str]:
        try:
            return sorted(os.listdir(self._path(prefix)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def age_seconds(self, key: str) -> float | None:
        try:
            return self._now() - self._path(key).stat().st_mtime
        except FileNotFoundError:
            return None

    def delete_abandoned(self, older_than_seconds: float) -> int:
        written_before = self._now() - older_than_seconds
        abandoned = [path for path in self._tmp.iterdir() if _touched_at(path) < written_before]
        for path in abandoned:
            self.delete(path.relative_to(self._root).as_posix())
        return len(abandoned)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._root).free

    def _now(self) -> float:
        # The file system's clock, which is the one that files are dated by: a wrong clock of this
        # host, or another host's, must not make anything look old.
        clock = self._tmp / ".clock"
        clock.touch()
        return clock.stat().st_mtime

    def _path(self, key: str) -> Path:
        path = (self._root / key).resolve()
        # Keys come from the server alone; this holds even if one day they do not.
        if not path.is_relative_to(self._root) or path == self._root:
            raise NotFound(f"no content is stored under {key!r}")
        return path


def _rename(source: Path, target: Path) -> None:
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    _fsync(target.parent)
    # A directory that a power failure takes away takes its content with it.
    for directory in made:
        _fsync(directory.parent)


def _touched_at(path: Path) -> float:
    """Return when anything at or below a path was last written; never, if it just vanished."""
    try:
        return max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    except FileNotFoundError:
        return math.inf


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _full_disk_as_storage_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull() from error
        raise
