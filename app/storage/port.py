"""What every storage backend offers, and the registry of backends by URL scheme."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from app.domain.registry import Registry, resolve


@dataclass(frozen=True, slots=True)
class StoredContent:
    """What was stored: its length and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class Storage(Protocol):
    """Content under keys such as `files/file-abc` or `jobs/ftjob-abc/e1/step-20/adapter`.

    Keys are made by the server from ids alone, never from names that users chose.
    """

    def put(self, key: str, chunks: Iterable[bytes]) -> StoredContent:
        """Store content durably under a new key; a crash leaves all of it or nothing.

        Raises:
            StorageFull: there is no room; nothing was stored.
        """

    def open(self, key: str) -> BinaryIO:
        """Open content for reading. Raises: NotFound."""

    def publish(self, prefix: str, source: Path) -> None:
        """Move a finished directory under a prefix, durably and all at once.

        Raises:
            StorageFull: there is no room; nothing was stored.
        """

    def directory(self, prefix: str) -> Path:
        """Return a local directory that holds the files under a prefix. Raises: NotFound."""

    def scratch(self) -> Path:
        """Return a new empty directory from which `publish` can move cheaply."""

    def delete(self, prefix: str) -> None:
        """Delete everything under a key or prefix; nothing there is not an error."""

    def list(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix, in order; none if nothing is there."""

    def age_seconds(self, key: str) -> float | None:
        """Return how long ago a key or prefix was last written, or None if nothing is there."""

    def delete_abandoned(self, older_than_seconds: float) -> int:
        """Delete what was begun and neither finished nor touched for so long; return how many."""

    def free_bytes(self) -> int:
        """Return how many bytes can still be stored."""


# Each entry names a class with a `from_url(url)` constructor.
STORAGE_BACKENDS: Registry[str] = Registry("storage backend")
STORAGE_BACKENDS.add("file", "app.storage.local:LocalStorage")


def open_storage(url: str) -> Storage:
    """Open the backend that the URL's scheme names. Raises: UnknownName."""
    storage: Storage = resolve(STORAGE_BACKENDS[urlsplit(url).scheme]).from_url(url)
    return storage
