"""Names of classes, in one order for all that is trained and served."""

from collections.abc import Iterable
from typing import Any


def class_name(label: Any) -> str:
    """Return the name of a class as a string: JSON's words for true and false."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def ordered_labels(names: Iterable[str]) -> list[str]:
    """Return class names in order: numbers by their value, words by the alphabet."""
    chosen = list(names)
    if all(name.lstrip("-").isdigit() for name in chosen):
        return sorted(chosen, key=int)
    return sorted(chosen)
