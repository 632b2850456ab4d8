"""What CSV and Parquet share: named columns, and cells that a kind of record gives types to."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import msgspec

from app.domain.datasets.faults import WrongRecord, quoted, quoted_list
from app.domain.datasets.kinds import RecordKind
from app.domain.datasets.limits import MAX_NESTING
from app.domain.datasets.recognition import explain_keys, find_kind

# A label may be any of these, one throughout a file.
AnyLabel = object

_SCALARS = (str, bool, int, float)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Column:
    """What the cells of a column are.

    Attributes:
        cell: str, bool, int or float; list for JSON; AnyLabel; or None for a column of the user's
            own, where only objects and arrays are JSON.
        is_required: an empty cell is an empty text, not an absent one.
    """

    name: str
    cell: type | None
    is_required: bool = True


def check_names(names: Sequence[str]) -> None:
    """Raises: WrongRecord: no kind of record has such columns."""
    for index, name in enumerate(names):
        if not name:
            raise WrongRecord(
                f"column {index + 1} has no name (pandas writes its index so; leave it out with "
                "to_csv(…, index=False))"
            )
        if name in names[:index]:
            raise WrongRecord(f"two columns have the name {quoted(name)}")
    if find_kind(dict.fromkeys(names)) is None:
        raise WrongRecord(f"the columns are {quoted_list(names)}: {explain_keys(names)}")


def check_columns(kind: RecordKind, names: Sequence[str]) -> None:
    """Raises: WrongRecord: a kind's records lack one of the columns, or need another."""
    if not _has_fixed_keys(kind):
        return
    fields = msgspec.structs.fields(kind.struct)
    known = [field.encode_name for field in fields]
    for name in names:
        if name not in known:
            raise WrongRecord(
                f"unknown column {quoted(name)}; records of kind {kind.name} have the columns "
                + ", ".join(known)
            )
    for field in fields:
        if field.required and field.encode_name not in names:
            raise WrongRecord(
                f"there is no column '{field.encode_name}'; records of kind {kind.name} have the "
                "columns " + ", ".join(known)
            )


def probe(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for recognising its kind: cells that may be JSON as what they hold."""
    return {name: _maybe_json(value) for name, value in row.items()}


def columns_of(kind: RecordKind, names: Sequence[str]) -> list[Column]:
    """Return what the kind of record says of each column."""
    if not _has_fixed_keys(kind):
        return [Column(name, list if name in ("messages", "tools") else None) for name in names]
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind.struct)}
    return [Column(name, _cell_type(fields[name].type), fields[name].required) for name in names]


def typed_row(columns: Sequence[Column], cells: Sequence[str]) -> dict[str, Any]:
    """Return what the cells of a row of text hold. Raises: WrongRecord, naming the column."""
    row: dict[str, Any] = {}
    for column, text in zip(columns, cells, strict=True):
        is_absent = not text and (column.cell not in (str, None) or not column.is_required)
        if not is_absent:
            row[column.name] = typed(column, text)
    return row


def typed(column: Column, text: str) -> Any:
    """Return what one cell holds. Raises: WrongRecord."""
    if column.cell is str:
        return text
    if column.cell is None:
        return _maybe_json(text)
    if column.cell is bool:
        if (value := _BOOLEANS.get(text.strip().lower())) is None:
            raise WrongRecord(f"'{column.name}': expected true or false, found {quoted(text)}")
        return value
    if column.cell is int or column.cell is float:
        try:
            return column.cell(text)
        except ValueError:
            raise WrongRecord(f"'{column.name}': expected a number, found {quoted(text)}") from None
    return _json(column.name, text)


def _has_fixed_keys(kind: RecordKind) -> bool:
    return isinstance(kind.struct, type) and issubclass(kind.struct, msgspec.Struct)


def _cell_type(annotation: Any) -> type:
    if annotation is Any:
        return str
    is_union = get_origin(annotation) in (Union, types.UnionType)
    members = get_args(annotation) if is_union else (annotation,)
    scalars = [member for member in members if member in _SCALARS]
    if len(scalars) > 1:
        return AnyLabel
    scalar: type = scalars[0] if scalars else list
    return scalar


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise WrongRecord(f"'{name}' is nested deeper than {MAX_NESTING} levels") from None
    except (msgspec.DecodeError, UnicodeError):
        hint = "; in JSON, strings have double quotes" if text.startswith(("['", "[{'")) else ""
        raise WrongRecord(
            f'\'{name}\': expected JSON such as ["a", "b"], found {quoted(text)}{hint}'
        ) from None


def _maybe_json(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return value
