"""Short leases for what only one process may do at a time."""

from sqlalchemy import Connection, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import now
from app.db.tables import locks


def acquire(connection: Connection, name: str, owner: str, ttl_seconds: float) -> bool:
    """Take or renew a lock; False while another owner's has not expired."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(locks).values(name=name, owner=owner, expires_at=now() + ttl_seconds)
    taken = connection.execute(
        statement.on_conflict_do_update(
            index_elements=[locks.c.name],
            set_={"owner": owner, "expires_at": statement.excluded.expires_at},
            where=or_(locks.c.owner == owner, locks.c.expires_at <= now()),
        ).returning(locks.c.owner)
    ).scalar()
    return taken == owner


def seconds_left(connection: Connection, name: str) -> float | None:
    """Return how long a lock still holds, negative once it has expired; None if it never held."""
    return connection.scalar(select(locks.c.expires_at - now()).where(locks.c.name == name))
