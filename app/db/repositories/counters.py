"""What has happened since the installation began, counted in the transaction that did it."""

from typing import Literal

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.tables import counters

Counter = Literal["redispatches", "fenced_writes", "lease_steals", "repeated_steps"]


def add(connection: Connection, name: Counter, amount: int = 1) -> None:
    """Count up. The row stays locked until the end of the transaction: make this its last step."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(counters).values(name=name, value=amount)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[counters.c.name],
            set_={"value": counters.c.value + statement.excluded.value},
        )
    )


def get_all(connection: Connection) -> dict[str, int]:
    """Return every counter that was ever counted up."""
    return {row.name: row.value for row in connection.execute(select(counters))}
