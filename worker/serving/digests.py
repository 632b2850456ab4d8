"""Digests of files, each computed once as long as the file stays as it is."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

# So many files are remembered; each takes some hundred bytes.
_MAX_REMEMBERED = 50_000

_Signature = tuple[int, int, int, int]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Remembers the SHA-256 of files. May be used from any thread.

    A file counts as unchanged while its inode, its length and its time of change are. So damage
    is found the first time that an engine sees a file, and whenever anything writes to it; what
    turns a bit below the file system is found at the engine's next start.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[_Signature, str]] = OrderedDict()
        self._guard = threading.Lock()

    def sha256(self, path: Path) -> str:
        """Return a file's digest. Raises: OSError."""
        with path.open("rb") as file:
            signature = _signature(file.fileno())
            with self._guard:
                known = self._known.get(path)
            if known is not None and known[0] == signature:
                return known[1]
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            is_still = _signature(file.fileno()) == signature
        if is_still:
            self._remember(path, signature, digest)
        return digest

    def _remember(self, path: Path, signature: _Signature, digest: str) -> None:
        with self._guard:
            self._known[path] = signature, digest
            self._known.move_to_end(path)
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)


def _signature(descriptor: int) -> _Signature:
    status = os.fstat(descriptor)
    # Not the time of modification: whoever restores or copies a file sets that as it was.
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
