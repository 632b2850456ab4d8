"""API keys: made from random bits, stored as a hash, shown once."""

import hashlib
import hmac
import secrets

from sqlalchemy import Connection

from app.db.repositories import keys, locks
from app.db.repositories.keys import Principal
from app.domain.errors import Unauthenticated
from app.domain.ids import new_id

_PREFIX = "sk-ts-"
_ID_LENGTH = 10
DEFAULT_PROJECT = "default"


def create_key(
    connection: Connection,
    *,
    organization: str,
    project: str = DEFAULT_PROJECT,
    name: str,
) -> str:
    """Make a key for a project (made too if it is new) and return it; it cannot be read again."""
    project_id = keys.ensure_project(connection, organization, project)
    key_id = new_id("", _ID_LENGTH)
    # 32 bytes: a plain hash is enough, since such a secret cannot be guessed from it.
    secret = secrets.token_urlsafe(32)
    keys.add(
        connection,
        key_id=key_id,
        project_id=project_id,
        name=name,
        secret_sha256=_hash(secret),
    )
    return f"{_PREFIX}{key_id}-{secret}"


def create_first_key(connection: Connection, organization: str) -> str | None:
    """Make the first key of an installation, or return None when there is one already."""
    # Several processes may start at once: the second waits here until the first has committed.
    locks.acquire(connection, "first-key", owner=_PREFIX, ttl_seconds=1)
    if keys.has_any(connection):
        return None
    return create_key(connection, organization=organization, name="first")


def authenticate(connection: Connection, key: str | None) -> Principal:
    """Return who holds a key. Raises: Unauthenticated."""
    if not key:
        raise Unauthenticated(
            "You did not provide an API key. Send it as 'Authorization: Bearer <key>'."
        )
    key_id, _, secret = key.removeprefix(_PREFIX).partition("-")
    found = keys.find_active(connection, key_id)
    # The comparison runs for unknown ids too, so that they take as long as known ones.
    principal, expected = found or (None, _hash(""))
    if not hmac.compare_digest(_hash(secret), expected) or principal is None:
        raise Unauthenticated(
            "Incorrect API key provided. `tunesmith keys create` makes a new one."
        )
    return principal


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
