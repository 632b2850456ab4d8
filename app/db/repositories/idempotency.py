"""Rows of POSTs that must not take effect twice: who is answering one, and what was answered.

A row without an answer is a lease: past `locked_until` its key is free again. What OpenAI's client
repeats without a key has a row too, under a key of ours that is made of the request's content.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import now
from app.db.tables import idempotency_keys as keys
from app.domain.errors import IdempotencyKeyReused, RequestInFlight

LOCK_SECONDS = 10.0
KEEP_SECONDS = 86_400.0
# OpenAI's client gives up on a request after ten minutes, and then repeats it at once.
KEEP_IMPLICIT_SECONDS = 900.0
# No key of a caller can begin like this: theirs hold no space.
_IMPLICIT = "sdk "


@dataclass(frozen=True, slots=True)
class Claim:
    """One request's claim to be the one that takes effect.

    Attributes:
        key: the caller's own; None for one that is made of the content.
        fingerprint: SHA-256 of the request's content.
        owner: a random token of this one request.
        is_repetition: whether the caller says that it has sent this before; only without a key.
    """

    project_id: str
    method: str
    path: str
    key: str | None
    fingerprint: str
    owner: str
    is_repetition: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was sent, byte for byte."""

    status: int
    content_type: str
    body: bytes


def claim(connection: Connection, claim: Claim) -> Answer | None:
    """Take the key, and return None; or return what was answered under it before.

    On Postgres this waits for whoever is writing the row.

    Raises:
        RequestInFlight: another request holds it.
        IdempotencyKeyReused: it stands for another content.
    """
    keep_seconds = KEEP_IMPLICIT_SECONDS if claim.key is None else KEEP_SECONDS
    # Whatever an earlier request was answered, one that is sent for the first time is another.
    is_new = claim.key is None and not claim.is_repetition
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    taking = {
        "fingerprint": claim.fingerprint,
        "owner": claim.owner,
        "locked_until": now() + LOCK_SECONDS,
        "expires_at": now() + keep_seconds,
        "status": None,
        "content_type": None,
        "body": None,
    }
    taken = connection.scalar(
        dialect.insert(keys)
        .values(
            project_id=claim.project_id,
            method=claim.method,
            path=claim.path,
            key=_key(claim),
            **taking,
        )
        .on_conflict_do_update(
            index_elements=list(keys.primary_key),
            set_=taking,
            where=None if is_new else _is_free(),
        )
        .returning(keys.c.owner)
    )
    if taken is not None:
        return None
    found = connection.execute(select(keys).where(_is_of(claim))).one()
    if found.fingerprint != claim.fingerprint:
        raise IdempotencyKeyReused()
    if found.status is None:
        raise RequestInFlight()
    return Answer(found.status, found.content_type, bytes(found.body))


def complete(connection: Connection, claim: Claim, answer: Answer) -> None:
    """Store the answer, in the transaction of the effect.

    Raises:
        RequestInFlight: the claim lapsed and another request has taken the key; the transaction
            must not commit.
    """
    stored = connection.execute(
        update(keys)
        .where(_is_held(claim))
        .values(status=answer.status, content_type=answer.content_type, body=answer.body)
    )
    if stored.rowcount == 0:
        raise RequestInFlight()


def release(connection: Connection, claim: Claim) -> None:
    """Free the key, if the claim still holds it and has no answer."""
    connection.execute(delete(keys).where(_is_held(claim)))


def renew(connection: Connection, claims: Sequence[Claim]) -> None:
    """Hold the keys for longer; a claim that has lapsed and was taken over stays lost."""
    places = [(one.project_id, one.method, one.path, _key(one)) for one in claims]
    connection.execute(
        update(keys)
        .where(
            tuple_(*keys.primary_key).in_(places),
            keys.c.owner.in_([one.owner for one in claims]),
            keys.c.status.is_(None),
        )
        .values(locked_until=now() + LOCK_SECONDS)
    )


def outdate(connection: Connection, project_id: str, paths: Collection[str]) -> None:
    """Drop answers without a key which what this transaction does makes untrue.

    A row that another transaction is writing is passed over: it will hold a newer answer.
    """
    outdated = (
        select(keys.c.path, keys.c.key)
        .where(
            keys.c.project_id == project_id,
            keys.c.method == "POST",
            keys.c.path.in_(paths),
            keys.c.key.startswith(_IMPLICIT),
            keys.c.status.is_not(None),
        )
        .with_for_update(skip_locked=True)
    )
    connection.execute(
        delete(keys).where(
            keys.c.project_id == project_id,
            keys.c.method == "POST",
            tuple_(keys.c.path, keys.c.key).in_(outdated),
        )
    )


def delete_expired(connection: Connection) -> int:
    """Delete answers past their time, and claims that nobody renews; return how many."""
    return connection.execute(delete(keys).where(keys.c.expires_at <= now(), _is_free())).rowcount


def _key(claim: Claim) -> str:
    return f"{_IMPLICIT}{claim.fingerprint}" if claim.key is None else claim.key


def _is_of(claim: Claim) -> ColumnElement[bool]:
    return and_(
        keys.c.project_id == claim.project_id,
        keys.c.method == claim.method,
        keys.c.path == claim.path,
        keys.c.key == _key(claim),
    )


def _is_held(claim: Claim) -> ColumnElement[bool]:
    return and_(_is_of(claim), keys.c.owner == claim.owner, keys.c.status.is_(None))


def _is_free() -> ColumnElement[bool]:
    is_abandoned = and_(keys.c.status.is_(None), keys.c.locked_until <= now())
    has_expired = and_(keys.c.status.is_not(None), keys.c.expires_at <= now())
    return or_(is_abandoned, has_expired)
