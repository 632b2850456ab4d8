"""POSTs that take effect once: the answer is written in the transaction of the effect.

A caller's key is claimed in a short transaction of its own, so that others see the request in
flight, and for as long as it is, this process renews the claim. What OpenAI's client repeats
without a key is told apart inside the transaction of the effect alone.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from app.db.database import Database
from app.db.repositories import idempotency as rows
from app.db.repositories.idempotency import Answer, Claim
from app.domain.errors import DomainError, RequestInFlight, Unavailable

RENEW_EVERY_SECONDS = rows.LOCK_SECONDS / 4

_log = logging.getLogger("tunesmith.idempotency")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and whether it was made before."""

    answer: Answer
    is_replayed: bool


class Claims:
    """The keys that this process is at work on, kept alive by a thread until it is closed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=10)

    def once(
        self,
        claim: Claim | None,
        effect: Callable[[Connection, T], Answer],
        *,
        prepare: Callable[[], T],
        discard: Callable[[T], None],
    ) -> Outcome:
        """Let a request take effect, unless it has done so before.

        Args:
            claim: None if nothing tells whether the request was sent before.
            effect: what is done in one transaction, with what `prepare` returned.
            prepare: what has to be done first, outside of any transaction.
            discard: undoes it when the effect turns out not to be wanted.

        Raises:
            RequestInFlight: another request with the key is at work, or took it over.
            IdempotencyKeyReused: the key stands for another content.
            DomainError: whatever `prepare` and `effect` raise; the key is free again.
        """
        if claim is None or claim.key is None:
            return self._commit(claim, effect, prepare(), discard)
        stored = self.begin(claim)
        if stored is not None:
            return Outcome(stored, is_replayed=True)
        with self._ending(claim):
            return self._commit(claim, effect, prepare(), discard)

    def begin(self, claim: Claim) -> Answer | None:
        """Claim a key and hold it until `store` or `release`; or return the stored answer.

        Raises:
            RequestInFlight: another request holds it.
            IdempotencyKeyReused: it stands for another content.
        """
        with self._database.write() as connection:
            stored = rows.claim(connection, claim)
        if stored is None:
            with self._lock:
                self._held[claim.owner] = claim
        return stored

    def store(self, claim: Claim, answer: Answer) -> None:
        """Store an answer that has no effect in the database.

        Raises:
            RequestInFlight: another request has taken the key over.
        """
        with self._ending(claim), self._database.write() as connection:
            rows.complete(connection, claim, answer)

    def release(self, claim: Claim) -> None:
        """Free a key whose request failed. Never raises a domain error: the claim lapses anyway."""
        self._let_go(claim)
        try:
            with self._database.write() as connection:
                rows.release(connection, claim)
        except DomainError as error:
            _log.warning("a key stays claimed for a few seconds: %s", error.message)

    def renew(self) -> None:
        """Renew every claim that is held; without one the database is left alone."""
        with self._lock:
            held = list(self._held.values())
        if held:
            with self._database.write() as connection:
                rows.renew(connection, held)

    def _commit(
        self,
        claim: Claim | None,
        effect: Callable[[Connection, T], Answer],
        prepared: T,
        discard: Callable[[T], None],
    ) -> Outcome:
        try:
            with self._database.write() as connection:
                outcome = _take_effect(connection, claim, effect, prepared)
        except RequestInFlight:
            discard(prepared)
            raise
        # After any other error what was prepared stays: the commit may have come through.
        if outcome.is_replayed:
            discard(prepared)
        return outcome

    @contextmanager
    def _ending(self, claim: Claim) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.release(claim)
            raise
        self._let_go(claim)

    def _let_go(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim.owner, None)

    def _run(self) -> None:
        while not self._closing.wait(RENEW_EVERY_SECONDS):
            try:
                self.renew()
            except Unavailable as error:
                _log.warning("claims are not renewed for now: %s", error.message)
            except Exception:  # Claims that lapse meanwhile are guarded by their owner.
                _log.exception("cannot renew claims; trying again")


def _take_effect(
    connection: Connection,
    claim: Claim | None,
    effect: Callable[[Connection, T], Answer],
    prepared: T,
) -> Outcome:
    if claim is None:
        return Outcome(effect(connection, prepared), is_replayed=False)
    if claim.key is None:
        # At the start: a repetition that comes meanwhile waits here for this one's commit.
        stored = rows.claim(connection, claim)
        if stored is not None:
            return Outcome(stored, is_replayed=True)
    answer = effect(connection, prepared)
    rows.complete(connection, claim, answer)
    return Outcome(answer, is_replayed=False)


def delete_expired(database: Database) -> None:
    """Delete answers past their time."""
    with database.write() as connection:
        rows.delete_expired(connection)
