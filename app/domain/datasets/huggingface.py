"""Names of classes that Hugging Face's `datasets` puts beside the numbers in a Parquet file."""

from collections.abc import Mapping
from typing import Any

import msgspec


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of classes of each column that has them.

    Args:
        metadata: of the Parquet file's schema.
    """
    try:
        written = msgspec.json.decode((metadata or {}).get(b"huggingface", b"{}"))
        features = written["info"]["features"]
        return {
            column: names
            for column, feature in features.items()
            if (names := _names(feature)) is not None
        }
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, AttributeError, ValueError):
        return {}


def named(value: Any, names: list[str]) -> Any:
    """Return a class, or a list of classes, by name. What is no class stays as it is."""
    if isinstance(value, list):
        return [named(one, names) for one in value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return value


def _names(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel, or of a list of them, however it is written."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _names(feature.get("feature"))
    if feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None
