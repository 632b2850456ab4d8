"""POSTs that take effect once, on each engine: under a caller's key, and without one."""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, select, update

from app.api.idempotency import Idempotent
from app.api.streaming import EventStreamResponse
from app.db.clock import now
from app.db.database import Database
from app.db.repositories import idempotency as rows
from app.db.repositories.idempotency import Answer, Claim
from app.db.tables import files, idempotency_keys
from app.domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidInput,
    RequestInFlight,
)
from app.services.idempotency import Claims, Outcome, delete_expired
from app.services.sweeper import Sweeper
from tests.support.factories import add_file, add_project
from tests.support.polling import eventually


@pytest.fixture
def project(database: Database) -> str:
    with database.write() as connection:
        return add_project(connection)


@pytest.fixture
def claims(database: Database) -> Claims:
    """One process; it renews only when a test says so."""
    return Claims(database)


class Post:
    """A request whose effect is a file, and what became of it."""

    def __init__(self, claims: Claims, project: str) -> None:
        self._claims = claims
        self._project = project
        self.discarded: list[str] = []
        self.effects = 0

    def __call__(self, claim: Claim | None, **more: Any) -> Outcome:
        more = {"effect": self.effect, "prepare": lambda: "prepared"} | more
        return self._claims.once(claim, discard=self.discarded.append, **more)

    def effect(self, connection: Connection, prepared: str) -> Answer:
        self.effects += 1
        # Not text: what is stored is what was sent, whatever that is.
        file_id = add_file(connection, self._project).id
        return Answer(200, "application/json", b"\x00\xff " + file_id.encode())


@pytest.fixture
def post(claims: Claims, project: str) -> Post:
    return Post(claims, project)


@pytest.fixture
def keyed(project: str) -> Claim:
    return Claim(project, "POST", "/v1/files", "order-17", "a" * 64, owner="first")


@pytest.fixture
def unkeyed(project: str) -> Claim:
    return Claim(project, "POST", "/v1/files", None, "a" * 64, owner="first")


def again(claim: Claim, **changes: Any) -> Claim:
    return replace(claim, owner=secrets.token_hex(8), **changes)


def count(database: Database, table: Any = files) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def change(database: Database, **values: Any) -> None:
    """Change every row of a key."""
    with database.write() as connection:
        connection.execute(update(idempotency_keys).values(**values))


def seconds_left(database: Database) -> float:
    with database.read() as connection:
        return connection.scalars(select(idempotency_keys.c.locked_until - now())).one()


def test_the_same_request_gets_the_first_answer(
    database: Database, post: Post, keyed: Claim
) -> None:
    first = post(keyed)
    second = post(again(keyed))
    assert (first.is_replayed, second.is_replayed) == (False, True)
    assert second.answer == first.answer
    assert (post.effects, count(database)) == (1, 1)
    assert post.discarded == []


def test_a_repetition_prepares_nothing(post: Post, keyed: Claim) -> None:
    post(keyed)
    prepared = []
    post(again(keyed), prepare=lambda: prepared.append(1))
    assert prepared == []


def test_another_content_under_a_known_key_is_refused(
    database: Database, post: Post, keyed: Claim
) -> None:
    first = post(keyed)
    with pytest.raises(IdempotencyKeyReused):
        post(again(keyed, fingerprint="b" * 64))
    assert count(database) == 1
    assert post(again(keyed)).answer == first.answer


@pytest.mark.parametrize("part", ["project_id", "method", "path", "key"])
def test_a_key_counts_in_its_own_project_method_and_path(
    database: Database, post: Post, keyed: Claim, part: str
) -> None:
    post(keyed)
    with database.write() as connection:
        other = add_project(connection, "other") if part == "project_id" else "other"
    assert not post(again(keyed, **{part: other, "fingerprint": "b" * 64})).is_replayed
    assert count(database) == 2


def test_without_a_claim_every_request_takes_effect(database: Database, post: Post) -> None:
    assert not post(None).is_replayed
    assert not post(None).is_replayed
    assert count(database) == 2
    assert count(database, idempotency_keys) == 0


def test_while_a_request_is_answered_its_key_is_in_flight(
    database: Database, post: Post, keyed: Claim
) -> None:
    def prepare() -> str:
        with pytest.raises(RequestInFlight):
            post(again(keyed))
        with pytest.raises(IdempotencyKeyReused):
            post(again(keyed, fingerprint="b" * 64))
        return "prepared"

    assert not post(keyed, prepare=prepare).is_replayed
    assert count(database) == 1


@pytest.mark.parametrize("where", ["prepare", "effect"])
def test_an_error_frees_the_key(database: Database, post: Post, keyed: Claim, where: str) -> None:
    def fail(*_: Any) -> Any:
        raise InvalidInput("no such model")

    def fail_late(connection: Connection, prepared: str) -> Any:
        post.effect(connection, prepared)
        fail()

    failing = {"prepare": fail} if where == "prepare" else {"effect": fail_late}
    with pytest.raises(InvalidInput, match="no such model"):
        post(keyed, **failing)
    assert count(database) == 0
    assert count(database, idempotency_keys) == 0
    # The content may be corrected.
    assert not post(again(keyed, fingerprint="b" * 64)).is_replayed
    assert post.discarded == []


def test_a_key_whose_process_died_is_free_once_its_claim_lapses(
    database: Database, claims: Claims, project: str, keyed: Claim
) -> None:
    assert claims.begin(keyed) is None
    survivor = Post(Claims(database), project)
    with pytest.raises(RequestInFlight):
        survivor(again(keyed))
    assert 0 < seconds_left(database) <= rows.LOCK_SECONDS
    change(database, locked_until=now() - 0.001)
    assert not survivor(again(keyed)).is_replayed
    assert survivor(again(keyed)).is_replayed


def test_who_was_taken_over_leaves_nothing(database: Database, post: Post, keyed: Claim) -> None:
    taken_over = []

    def stall() -> str:
        change(database, locked_until=now() - 1)
        taken_over.append(post(again(keyed)))
        return "stalled"

    with pytest.raises(RequestInFlight):
        post(keyed, prepare=stall)
    assert post.effects == 2
    assert count(database) == 1
    assert post.discarded == ["stalled"]
    # Its end does not free the key of whoever took over.
    assert post(again(keyed)).answer == taken_over[0].answer


def test_who_was_taken_over_does_not_free_the_key(
    database: Database, claims: Claims, keyed: Claim
) -> None:
    claims.begin(keyed)
    change(database, locked_until=now() - 1)
    claims.begin(again(keyed))
    claims.release(keyed)
    with pytest.raises(RequestInFlight):
        claims.begin(again(keyed))


def test_an_answer_outlasts_its_claim(database: Database, post: Post, keyed: Claim) -> None:
    post(keyed)
    change(database, locked_until=now() - 3_600)
    assert post(again(keyed)).is_replayed


def test_an_answer_is_kept_for_a_day(database: Database, post: Post, keyed: Claim) -> None:
    post(keyed)
    with database.read() as connection:
        left = connection.scalar(select(idempotency_keys.c.expires_at - now()))
    assert left == pytest.approx(86_400, abs=30)
    change(database, expires_at=now() - 1)
    assert not post(again(keyed, fingerprint="b" * 64)).is_replayed
    assert post(again(keyed, fingerprint="b" * 64)).is_replayed


def test_a_claim_is_renewed_while_it_is_held(
    database: Database, claims: Claims, keyed: Claim
) -> None:
    claims.begin(keyed)
    change(database, locked_until=now() + 1)
    Claims(database).renew()  # Another process, which holds nothing.
    assert seconds_left(database) <= 1
    claims.renew()
    assert seconds_left(database) > rows.LOCK_SECONDS - 5
    claims.store(keyed, Answer(200, "text/plain", b"done"))
    change(database, locked_until=now() + 1)
    claims.renew()
    assert seconds_left(database) <= 1


def test_a_claim_that_was_taken_over_is_not_renewed_for_its_first_owner(
    database: Database, claims: Claims, keyed: Claim
) -> None:
    claims.begin(keyed)
    change(database, locked_until=now() - 1)
    Claims(database).begin(again(keyed))
    change(database, locked_until=now() + 1)
    claims.renew()
    assert seconds_left(database) <= 1


def test_claims_are_renewed_by_themselves(database: Database, claims: Claims, keyed: Claim) -> None:
    claims.begin(keyed)
    change(database, locked_until=now() + 4)
    claims.start()
    try:
        eventually(lambda: seconds_left(database) > 4, what="the claim is renewed")
    finally:
        claims.close()


@contextmanager
def statements_of(database: Database) -> Iterator[list[str]]:
    said: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(database.engine, "before_cursor_execute", listen)


def test_with_nothing_in_flight_the_database_is_left_alone(
    database: Database, claims: Claims, post: Post, keyed: Claim
) -> None:
    claims.begin(keyed)
    claims.release(keyed)
    post(keyed)
    with statements_of(database) as said:
        claims.renew()
    assert said == []
    claims.begin(again(keyed, key="in flight"))
    with statements_of(database) as said:
        claims.renew()
    assert any(one.startswith("UPDATE idempotency_keys") for one in said)


def test_of_many_at_once_with_one_key_one_takes_effect(
    database: Database, post: Post, keyed: Claim
) -> None:
    start = threading.Barrier(8)

    def ask() -> Outcome | None:
        start.wait()
        try:
            return post(again(keyed))
        except RequestInFlight:
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
    outcomes = [one.result() for one in asked]
    told = [one for one in outcomes if one is not None]
    assert [one.is_replayed for one in told].count(False) == 1
    assert {one.answer for one in told} == {post(again(keyed)).answer}
    assert count(database) == 1


def test_what_a_client_repeats_by_itself_gets_the_first_answer(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    first = post(unkeyed)
    second = post(again(unkeyed, is_repetition=True))
    assert second == Outcome(first.answer, is_replayed=True)
    assert count(database) == 1
    assert post.discarded == ["prepared"]


def test_the_same_request_sent_anew_takes_effect_again(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    first = post(unkeyed)
    second = post(again(unkeyed))
    assert not second.is_replayed
    assert second.answer != first.answer
    assert count(database) == 2
    assert post.discarded == []
    assert post(again(unkeyed, is_repetition=True)).answer == second.answer


def test_a_repetition_whose_first_never_came_takes_effect(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    assert not post(again(unkeyed, is_repetition=True)).is_replayed
    assert post(again(unkeyed, is_repetition=True)).is_replayed
    assert count(database) == 1


def test_a_repetition_of_another_content_takes_effect(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    post(unkeyed)
    assert not post(again(unkeyed, is_repetition=True, fingerprint="b" * 64)).is_replayed
    assert count(database) == 2


def test_a_quarter_of_an_hour_later_a_repetition_is_another_request(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    post(unkeyed)
    with database.read() as connection:
        left = connection.scalar(select(idempotency_keys.c.expires_at - now()))
    assert left == pytest.approx(900, abs=30)
    change(database, expires_at=now() - 1)
    assert not post(again(unkeyed, is_repetition=True)).is_replayed


def test_a_first_attempt_that_fails_leaves_nothing_to_repeat(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    def fail(connection: Connection, prepared: str) -> Answer:
        post.effect(connection, prepared)
        raise InvalidInput("no such model")

    with pytest.raises(InvalidInput):
        post(unkeyed, effect=fail)
    assert count(database, idempotency_keys) == 0
    assert not post(again(unkeyed, is_repetition=True)).is_replayed
    assert count(database) == 1


class Slow(Post):
    """Its effect takes until it is told to end."""

    def __init__(self, claims: Claims, project: str) -> None:
        super().__init__(claims, project)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self.fails = False

    def effect(self, connection: Connection, prepared: str) -> Answer:
        answer = super().effect(connection, prepared)
        self.has_begun.set()
        assert self.may_end.wait(30)
        if self.fails:
            raise InvalidInput("no such model")
        return answer


@pytest.mark.parametrize("fails", [False, True])
def test_a_repetition_waits_for_the_first_to_be_committed(
    database: Database, claims: Claims, project: str, post: Post, unkeyed: Claim, fails: bool
) -> None:
    slow = Slow(claims, project)
    slow.fails = fails
    with ThreadPoolExecutor(max_workers=2) as pool:
        first = pool.submit(slow, unkeyed)
        assert slow.has_begun.wait(30)
        second = pool.submit(post, again(unkeyed, is_repetition=True))
        # It cannot have an answer yet; had it one, this would not time out.
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        slow.may_end.set()
        assert isinstance(first.exception(), InvalidInput) == fails
        assert second.result().is_replayed == (not fails)
    assert count(database) == 1


def test_repetitions_at_once_take_effect_once(
    database: Database, post: Post, unkeyed: Claim
) -> None:
    start = threading.Barrier(8)

    def ask() -> Outcome:
        start.wait()
        return post(again(unkeyed, is_repetition=True))

    with ThreadPoolExecutor(max_workers=8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
    outcomes = [one.result() for one in asked]
    assert Counter(one.is_replayed for one in outcomes) == {False: 1, True: 7}
    assert len({one.answer for one in outcomes}) == 1
    assert count(database) == 1


# SQLite waits six times as long before it says the same.
@pytest.mark.parametrize("migrated_database", ["postgres"], indirect=True)
def test_a_repetition_that_waits_too_long_is_told_to_come_again(
    database: Database, claims: Claims, project: str, post: Post, unkeyed: Claim
) -> None:
    slow = Slow(claims, project)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(slow, unkeyed)
        try:
            assert slow.has_begun.wait(30)
            with pytest.raises(DatabaseUnavailable):
                post(again(unkeyed, is_repetition=True))
        finally:
            slow.may_end.set()
        assert not first.result().is_replayed
    assert post(again(unkeyed, is_repetition=True)).answer == first.result().answer
    assert count(database) == 1


def test_a_key_never_meets_an_answer_without_one(
    database: Database, post: Post, keyed: Claim, unkeyed: Claim
) -> None:
    post(keyed)
    post(unkeyed)
    assert count(database) == 2
    assert count(database, idempotency_keys) == 2
    with database.read() as connection:
        made = set(connection.scalars(select(idempotency_keys.c.key))) - {keyed.key}
    assert " " in made.pop()  # Which no key of a caller can hold.


def test_an_answer_that_became_untrue_is_not_repeated(
    database: Database, project: str, post: Post, keyed: Claim, unkeyed: Claim
) -> None:
    elsewhere = again(unkeyed, path="/v1/elsewhere")
    with database.write() as connection:
        foreign = again(unkeyed, project_id=add_project(connection, "other"))
    for claim in (keyed, unkeyed, elsewhere, foreign):
        post(claim)
    with database.write() as connection:
        rows.outdate(connection, project, ["/v1/files"])
    assert not post(again(unkeyed, is_repetition=True)).is_replayed
    # A caller's own key holds for its day, come what may.
    assert post(again(keyed)).is_replayed
    for claim in (elsewhere, foreign):
        assert post(again(claim, is_repetition=True)).is_replayed


def test_what_is_being_written_is_not_outdated(
    database: Database, project: str, unkeyed: Claim
) -> None:
    with database.write() as connection:
        assert rows.claim(connection, unkeyed) is None
        rows.outdate(connection, project, ["/v1/files"])
        rows.complete(connection, unkeyed, Answer(200, "text/plain", b"done"))


@pytest.mark.parametrize("migrated_database", ["postgres"], indirect=True)
def test_outdating_waits_for_nobody(
    database: Database, claims: Claims, project: str, post: Post, unkeyed: Claim
) -> None:
    post(unkeyed)
    slow = Slow(claims, project)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(slow, again(unkeyed))
        try:
            assert slow.has_begun.wait(30)
            with database.write() as connection:
                rows.outdate(connection, project, ["/v1/files"])
        finally:
            slow.may_end.set()
        assert not first.result().is_replayed
    assert post(again(unkeyed, is_repetition=True)).answer == first.result().answer


def test_a_stream_takes_no_longer_the_more_was_sent(claims: Claims, keyed: Claim) -> None:
    """What was sent is looked at for its end at each chunk, on the loop that answers everybody."""
    chunk = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'

    async def seconds_of(claim: Claim, number: int) -> float:
        async def stream() -> AsyncGenerator[bytes, None]:
            for _ in range(number):
                yield chunk
            yield b"data: [DONE]\n\n"

        async def given() -> EventStreamResponse:
            return EventStreamResponse(stream())

        response = await Idempotent(claims, claim).generated_once(given)
        assert isinstance(response, EventStreamResponse)
        began = time.process_time()
        async with aclosing(response.events) as events:
            assert sum([1 async for _ in events]) == number + 1
        return time.process_time() - began

    few = asyncio.run(seconds_of(again(keyed, key="few"), 4_000))
    many = asyncio.run(seconds_of(keyed, 40_000))
    # Ten times as much takes ten times as long; if all were looked at each time, a hundred times.
    assert many < 40 * few
    stored = claims.begin(again(keyed))
    assert stored is not None
    assert stored.body == chunk * 40_000 + b"data: [DONE]\n\n"


def test_what_is_past_its_time_is_deleted(
    database: Database, claims: Claims, post: Post, keyed: Claim, unkeyed: Claim
) -> None:
    post(keyed)
    post(unkeyed)
    claims.begin(again(keyed, key="abandoned"))
    change(database, expires_at=now() - 1, locked_until=now() - 1)
    claims.begin(again(keyed, key="in flight"))
    change(database, expires_at=now() - 1)
    post(again(keyed, key="fresh"))
    with database.write() as connection:
        connection.execute(
            update(idempotency_keys)
            .where(idempotency_keys.c.key == "in flight")
            .values(locked_until=now() + 10)
        )
    delete_expired(database)
    with database.read() as connection:
        left = set(connection.scalars(select(idempotency_keys.c.key)))
    assert left == {"in flight", "fresh"}


def test_the_sweep_deletes_what_is_past_its_time(
    database: Database, post: Post, keyed: Claim, sweeper: Sweeper
) -> None:
    post(keyed)
    change(database, expires_at=now() - 1)
    post(again(keyed, key="fresh"))
    sweeper.sweep()
    with database.read() as connection:
        assert list(connection.scalars(select(idempotency_keys.c.key))) == ["fresh"]
