"""A registry maps the names of one extension point to what implements them."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from app.domain.errors import UnknownName

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """An insertion-ordered, add-once mapping whose misses name what is known.

    Args:
        kind: what the names are, for messages: "training method", "storage backend".
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered already")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """Return the entry. Raises: UnknownName, listing the known names."""
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise UnknownName(f"unknown {self._kind} {name!r}; known: {known}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def resolve(dotted_path: str) -> Any:
    """Import what a registry names by `package.module:attribute`.

    Names, not imports, cross process boundaries: the API can register a trainer that only the
    worker can import.
    """
    module, _, attribute = dotted_path.partition(":")
    return getattr(importlib.import_module(module), attribute)
