"""How what is wrong with a dataset is said: the line, the field and what was expected."""

import re
from collections.abc import Iterable
from typing import Any, get_args

from app.domain.datasets.limits import MAX_MESSAGE_CHARACTERS, MAX_SHOWN_CHARACTERS
from app.domain.datasets.records import Role
from app.domain.errors import InvalidFile


class WrongRecord(Exception):
    """What is wrong with a record, in words; whoever reads the file adds the place."""


def wrong_record(place: str, what: str) -> InvalidFile:
    """Return the refusal of a file for one record.

    Args:
        place: `line 3`.
    """
    # The file's own words may be in it, which nobody needs to see whole.
    return InvalidFile(shortened(f"{place}: {what}"), param="file", code="invalid_record")


def wrong_file(what: str) -> InvalidFile:
    """Return the refusal of a file as a whole."""
    return InvalidFile(shortened(what), param="file")


def shortened(text: str, characters: int = MAX_MESSAGE_CHARACTERS) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def quoted(value: str) -> str:
    """Return text of the file's own as it can be shown: in quotes, escaped and not long."""
    return repr(shortened(value, MAX_SHOWN_CHARACTERS))


def quoted_list(values: Iterable[Any], limit: int = 8) -> str:
    shown = [quoted(str(value)) for value in values]
    return ", ".join(shown[:limit]) + (", …" if len(shown) > limit else "")


def type_name(value: Any) -> str:
    return {
        dict: "an object",
        list: "an array",
        str: "a string",
        type(None): "null",
        bool: "a boolean",
    }.get(type(value), "a number")


def in_our_words(error: Exception, example: str) -> str:
    """Say what msgspec found wrong with a record: the field, and what was expected there."""
    text = str(error)
    where = re.search(r" - at `\$\.?(.*?)`$", text, re.DOTALL)
    path = where[1] if where else ""
    if "missing required field" in text and (field := re.search(r"field `(\w+)`", text)):
        path = f"{path}.{field[1]}" if path else field[1]
        return f"'{path}' is missing; expected a record such as {example}"
    if "unknown field" in text and (field := re.search(r"field `(.*?)`", text, re.DOTALL)):
        place = f" in '{path}'" if path else ""
        return f"unknown key {quoted(field[1])}{place}"
    what = text[: where.start()] if where else text
    if "enum value" in what and path.endswith("role"):
        what += "; expected one of " + ", ".join(get_args(Role))
    if "enum value" in what and path.endswith("weight"):
        what = what.replace("Invalid enum value", "expected 0 or 1, found")
    what = what[:1].lower() + what[1:].replace("`", "")
    return f"'{path}': {what}" if path else what
