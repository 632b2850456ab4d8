"""The database's clock. Leases compare moments of one clock only, so hosts may disagree."""

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement


class now(ColumnElement[float]):
    """The present moment as float seconds since 1970, in the database's own clock.

    In Postgres it moves on inside a transaction (`clock_timestamp`), as it does in SQLite.
    """

    inherit_cache = True
    type = Float()


@compiles(now, "postgresql")
def _postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "unixepoch('subsec')"
