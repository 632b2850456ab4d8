"""Reading one value of a JSON object by a key that a user chose."""

from typing import Any

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class json_text(FunctionElement[str]):
    """The value under a key as text, or NULL: `json_text(column, key)`.

    SQLAlchemy's own way makes a path of the key, which SQLite misreads when the key holds quotes.
    """

    inherit_cache = True
    type = String()


@compiles(json_text, "postgresql")
def _postgresql(element: json_text, compiler: Any, **options: Any) -> str:
    column, key = element.clauses
    return f"({compiler.process(column, **options)} ->> {compiler.process(key, **options)})"


@compiles(json_text, "sqlite")
def _sqlite(element: json_text, compiler: Any, **options: Any) -> str:
    column, key = element.clauses
    return (
        f"(SELECT value FROM json_each({compiler.process(column, **options)}) "
        f"WHERE json_each.key = {compiler.process(key, **options)})"
    )
