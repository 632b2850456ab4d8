"""Which fields a request could have had where it has one that is unknown."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag

# Longer lists are not told whole: a reader looks for one name.
_MAX_TOLD = 12


def known_fields(expected: Any, location: Sequence[int | str]) -> list[str]:
    """Return the names of the fields beside an unknown one, in the order of their type.

    Args:
        expected: type of the request.
        location: of the unknown field, as pydantic gives it: with the members of unions that were
            tried on the way.
    """
    return list(dict.fromkeys(_fields(expected, tuple(location))))


def told_fields(known: Sequence[str], unknown: str) -> str:
    """Return the names for a message: few ones whole, of many those that come close first."""
    if len(known) <= _MAX_TOLD:
        return ", ".join(known)
    close = get_close_matches(unknown[:64], known, n=3)
    rest = [name for name in known if name not in close]
    return ", ".join([*close, *rest][:_MAX_TOLD]) + ", …"


def _fields(expected: Any, location: tuple[int | str, ...]) -> Iterator[str]:
    """Follow a location; where it does not lead on, there is nothing."""
    if isinstance(expected, type) and issubclass(expected, BaseModel):
        fields = {field.alias or name: field for name, field in expected.model_fields.items()}
        if len(location) == 1:
            yield from fields
        elif location and (field := fields.get(str(location[0]))) is not None:
            yield from _fields(field.annotation, location[1:])
        return
    origin, inner = get_origin(expected), get_args(expected)
    if origin is Annotated:
        yield from _fields(inner[0], location)
    elif origin in (Union, UnionType):
        members = [one for one in inner if one is not NoneType]
        for member in members:
            if len(members) == 1:
                yield from _fields(member, location)
            elif location and _is_called(member, location[0]):
                yield from _fields(member, location[1:])
    elif inner:
        # The elements of a list, the values of an object.
        yield from _fields(inner[-1], location[1:])


def _is_called(member: Any, name: int | str) -> bool:
    """Say whether a member of a union is meant: by its tag, if it has one, or by its type."""
    if get_origin(member) is Annotated:
        inner, *notes = get_args(member)
        named = [note.tag for note in notes if isinstance(note, Tag)]
        return name in named if named else _is_called(inner, name)
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return True
    tags = (field.annotation for field in member.model_fields.values())
    return member.__name__ == name or any(
        get_origin(tag) is Literal and name in get_args(tag) for tag in tags
    )
