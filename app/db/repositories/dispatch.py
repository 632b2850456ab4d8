"""Which queued rows have a message under way, in any table whose work messages hand out."""

from sqlalchemy import ColumnElement, Connection, Table, func, or_, select, update

from app.db.clock import now
from app.db.repositories import counters


def needs_message(table: Table, redispatch_after_seconds: float) -> ColumnElement[bool]:
    """Say that no message was sent for a row, or none that led to a claim."""
    sent = table.c.dispatched_at
    return or_(sent.is_(None), sent <= now() - redispatch_after_seconds)


def mark_dispatched(connection: Connection, table: Table, ids: list[str], *, is_sent: bool) -> None:
    """Note that there is a message for each row.

    Args:
        is_sent: a message was sent for each; those that had one already are counted. Otherwise
            enough messages are waiting as it is.
    """
    listed = table.c.id.in_(ids)
    again = connection.scalar(
        select(func.count()).select_from(table).where(listed, table.c.dispatched_at.is_not(None))
    )
    connection.execute(update(table).where(listed).values(dispatched_at=now()))
    if again and is_sent:
        counters.add(connection, "redispatches", again)
