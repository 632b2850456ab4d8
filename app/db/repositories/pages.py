"""Cursor pages, as OpenAI has them: `after` names the last object of the page before."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, tuple_

from app.domain.errors import InvalidInput

T = TypeVar("T")

Order = Literal["asc", "desc"]

# A statement takes a limited number of parameters.
_NAMES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of objects, and whether more follow."""

    items: Sequence[T]
    has_more: bool


def fetch_page(
    connection: Connection,
    table: Table,
    query: Select[Any],
    *,
    keys: tuple[str, ...],
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> Page[Any]:
    """Run a query for one page ordered by `keys`, which together are unique.

    Raises:
        InvalidInput: `after` names nothing that the query could return.
    """
    columns: list[ColumnElement[Any]] = [table.c[key] for key in keys]
    if after is not None:
        cursor = connection.execute(query.where(table.c.id == after).limit(1)).one_or_none()
        if cursor is None:
            raise InvalidInput(f"no object {after!r} to continue after", param="after")
        mark = tuple_(*(cursor._mapping[table.c[key]] for key in keys))
        place = tuple_(*columns)
        query = query.where(place > mark if order == "asc" else place < mark)
    ordered = query.order_by(*(c.asc() if order == "asc" else c.desc() for c in columns))
    rows = connection.execute(ordered.limit(limit + 1)).all()
    return Page(items=rows[:limit], has_more=len(rows) > limit)


def in_parts(names: Collection[str]) -> Iterator[Sequence[str]]:
    """Yield names in parts that one statement can take."""
    listed = list(names)
    for start in range(0, len(listed), _NAMES_AT_ONCE):
        yield listed[start : start + _NAMES_AT_ONCE]
