"""Thrift's compact protocol, as far as Parquet's headers are written in it.

A value read is an int, bool, bytes, a list of values, a dict by the number of the field, or None.
"""

from typing import Any

_MAX_LEVELS = 16


class TooShort(ValueError):
    """What was given ends before the structure does."""


def read_struct(buffer: bytes) -> tuple[dict[int, Any], int]:
    """Return the fields of the structure at the start of a buffer, and how long it is.

    Raises:
        TooShort: it goes on after the end of the buffer.
        ValueError: it is none.
    """
    try:
        return _struct(buffer, 0, _MAX_LEVELS)
    except IndexError:
        raise TooShort from None


# Each of these returns a value and the position after it.


def _struct(buffer: bytes, at: int, levels: int) -> tuple[dict[int, Any], int]:
    if levels == 0:
        raise ValueError("nested too deep")
    fields: dict[int, Any] = {}
    field = 0
    while head := buffer[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(buffer, at)
        if head & 15 in (1, 2):  # A boolean is its own type.
            fields[field] = head & 15 == 1
        else:
            fields[field], at = _value(buffer, at, head & 15, levels)
    return fields, at + 1


def _value(buffer: bytes, at: int, type_: int, levels: int) -> tuple[Any, int]:
    if type_ in (4, 5, 6):
        return _integer(buffer, at)
    if type_ == 8:
        length, at = _varint(buffer, at)
        if at + length > len(buffer):
            raise IndexError
        return buffer[at : at + length], at + length
    if type_ in (9, 10):
        return _list(buffer, at, levels)
    if type_ == 12:
        return _struct(buffer, at, levels - 1)
    if type_ in (1, 2, 3):  # A boolean in a list, or a byte.
        return buffer[at], at + 1
    if type_ == 7:
        return None, at + 8
    raise ValueError(f"there is no type {type_}")


def _list(buffer: bytes, at: int, levels: int) -> tuple[list[Any], int]:
    head = buffer[at]
    at += 1
    length = head >> 4
    if length == 15:
        length, at = _varint(buffer, at)
    # Every value takes a byte or more.
    if at + length > len(buffer):
        raise IndexError
    values = []
    for _ in range(length):
        value, at = _value(buffer, at, head & 15, levels)
        values.append(value)
    return values, at


def _integer(buffer: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(buffer, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = buffer[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")
