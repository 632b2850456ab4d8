"""Who may work on a batch, and whose writes count, on each engine."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, update

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import batch_chunks, batch_leases, batches
from app.db.repositories.batch_chunks import Chunk
from app.db.repositories.batches import Batch, NewBatch
from app.db.tables import batches as table
from app.domain.batches import BatchStatus
from app.domain.errors import InvalidTransition, LeaseLost
from tests.support.factories import add_project

VALIDATING, IN_PROGRESS = BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS


def add(connection: Connection, project: str, status: BatchStatus = VALIDATING) -> Batch:
    new = NewBatch(project, "/v1/chat/completions", "24h", "file-x", None, None)
    batch = batches.add(connection, new)
    connection.execute(update(table).where(table.c.id == batch.id).values(status=status))
    return batch


def claim(database: Database, *busy: str, ttl_seconds: float = 60) -> Batch | None:
    with database.write() as connection:
        has_one = batch_leases.has_claimable(connection, busy)
        batch = batch_leases.claim_next(connection, "someone", ttl_seconds, busy)
    assert has_one == (batch is not None)
    return batch


def claimed(database: Database, *busy: str, ttl_seconds: float = 60) -> Batch:
    batch = claim(database, *busy, ttl_seconds=ttl_seconds)
    assert batch is not None
    return batch


def chunk(number: int, lines: list[int], key: str = "batches/b/e1-1") -> Chunk:
    return Chunk(number, key, lines, len(lines), 0, 9 * len(lines), 1, 2, 3)


def now_is(database: Database, batch: Batch) -> Batch:
    with database.read() as connection:
        return batches.get(connection, batch.project_id, batch.id)


def test_one_holder_at_a_time(database: Database) -> None:
    with database.write() as connection:
        made = add(connection, add_project(connection))
    first = claimed(database, ttl_seconds=-1)
    assert (first.id, first.lease_epoch) == (made.id, 1)
    second = claimed(database)
    assert (second.id, second.lease_epoch) == (made.id, 2)
    assert claim(database) is None
    with database.write() as connection:
        batch_leases.give_back(connection, made.id, 2)
    assert claimed(database).lease_epoch == 3


def test_whoever_lost_the_lease_writes_nothing(database: Database) -> None:
    with database.write() as connection:
        add(connection, add_project(connection), IN_PROGRESS)
    first, second = claimed(database, ttl_seconds=-1), claimed(database)
    before = now_is(database, second)
    writes: list[Any] = [
        lambda it: batch_leases.look(it, first.id, 1),
        lambda it: batch_leases.renew(it, first.id, 1, 60),
        lambda it: batch_chunks.add(it, first.id, 1, chunk(1, [1]), 60),
        lambda it: batch_leases.move(it, first.id, 1, IN_PROGRESS, BatchStatus.FINALIZING),
        lambda it: batch_leases.fail(it, first.id, 1, IN_PROGRESS, []),
    ]
    for write in writes:
        with pytest.raises(LeaseLost), database.write() as connection:
            write(connection)
    with database.write() as connection:
        batch_leases.give_back(connection, first.id, 1)
    assert now_is(database, second) == before
    with database.read() as connection:
        assert batch_chunks.list_of_batch(connection, first.id) == []
    # The negative control: the same writes count when the holder makes them.
    with database.write() as connection:
        batch_chunks.add(connection, first.id, 2, chunk(1, [1]), 60)
        batch_leases.move(connection, first.id, 2, IN_PROGRESS, BatchStatus.FINALIZING)
    assert now_is(database, second).status is BatchStatus.FINALIZING


def test_a_chunk_counts_once_however_often_it_is_written(database: Database) -> None:
    with database.write() as connection:
        batch = add(connection, add_project(connection), IN_PROGRESS)
    claimed(database)
    for number, lines in ((1, [1, 3]), (1, [1, 3]), (2, [2])):
        with database.write() as connection:
            key = f"batches/b/e1-{number}"
            batch_chunks.add(connection, batch.id, 1, chunk(number, lines, key), 60)
    seen = now_is(database, batch)
    assert (seen.completed_lines, seen.input_tokens, seen.reasoning_tokens) == (3, 27, 6)
    with database.read() as connection:
        stored = batch_chunks.list_of_batch(connection, batch.id)
    assert [one.lines for one in stored] == [[1, 3], [2]]


def test_projects_take_turns(database: Database) -> None:
    with database.write() as connection:
        busy, idle = add_project(connection, "busy"), add_project(connection, "idle")
        held, next_of_busy = (add(connection, busy, IN_PROGRESS) for _ in range(2))
        last_of_busy, of_idle = (
            add(connection, busy, IN_PROGRESS),
            add(connection, idle, IN_PROGRESS),
        )
        for age, batch in enumerate((held, next_of_busy, last_of_busy, of_idle)):
            row = update(table).where(table.c.id == batch.id)
            connection.execute(row.values(created_at=float(age)))
    assert claimed(database).id == held.id
    assert claimed(database).id == of_idle.id
    assert claim(database, busy, idle) is None
    assert claimed(database).id == next_of_busy.id


def test_what_takes_a_moment_waits_for_no_turn(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        running = add(connection, project, IN_PROGRESS)
        new, ending = add(connection, project), add(connection, project, BatchStatus.CANCELLING)
        expired = add(connection, project, IN_PROGRESS)
        row = update(table).where(table.c.id == expired.id)
        connection.execute(row.values(expires_at=now() - 1))
    with database.write() as connection:
        first = batch_leases.claim_next(connection, "someone", 60, None)
        second = batch_leases.claim_next(connection, "someone", 60, None)
    third = claimed(database, project)
    assert {one.id for one in (first, second, third) if one} == {new.id, ending.id, expired.id}
    with database.read() as connection:
        assert not batch_leases.has_claimable(connection, None)
    assert claim(database, project) is None
    assert claimed(database).id == running.id


def test_claimers_at_once_never_get_the_same(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        made = {add(connection, project).id for _ in range(12)}

    def claim_some() -> list[str]:
        found = []
        for _ in range(6):
            # On Postgres one that finds the row locked looks past it, at none perhaps.
            with database.write() as connection:
                batch = batch_leases.claim_next(connection, "someone", 60, ())
            found += [batch.id] if batch else []
        return found

    with ThreadPoolExecutor(4) as pool:
        found = [one for each in pool.map(lambda _: claim_some(), range(4)) for one in each]
    while batch := claim(database):
        found.append(batch.id)
    assert sorted(found) == sorted(made)


def test_a_cancelled_batch_takes_no_other_way(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        batch = add(connection, project)
    claimed(database)
    with database.write() as connection:
        assert batches.cancel(connection, project, batch.id).status is BatchStatus.CANCELLING
    with pytest.raises(LeaseLost), database.write() as connection:
        batch_leases.move(connection, batch.id, 1, VALIDATING, IN_PROGRESS)
    with database.write() as connection:
        assert batch_leases.look(connection, batch.id, 1).status is BatchStatus.CANCELLING
        # Asking twice changes nothing.
        assert batches.cancel(connection, project, batch.id).status is BatchStatus.CANCELLING
        ended = batch_leases.move(
            connection, batch.id, 1, BatchStatus.CANCELLING, BatchStatus.CANCELLED
        )
    assert (ended.lease_owner, ended.lease_expires_at) == (None, None)
    with pytest.raises(InvalidTransition), database.write() as connection:
        batches.cancel(connection, project, batch.id)
    assert claim(database) is None


@pytest.mark.parametrize("source", list(BatchStatus))
@pytest.mark.parametrize("to", list(BatchStatus))
def test_only_moves_of_the_table_are_made(source: BatchStatus, to: BatchStatus) -> None:
    allowed = {
        ("validating", "in_progress"),
        ("validating", "cancelling"),
        ("in_progress", "finalizing"),
        ("in_progress", "cancelling"),
        ("finalizing", "completed"),
        ("finalizing", "expired"),
        ("cancelling", "cancelled"),
        *((one, "failed") for one in ("validating", "in_progress", "finalizing", "cancelling")),
    }
    refused: list[InvalidTransition | None] = [None]
    with suppress(AttributeError):
        try:
            # Without a connection: a move that is allowed gets as far as asking for one.
            batch_leases.move(None, "batch_x", 1, source, to)  # type: ignore[arg-type]
        except InvalidTransition as error:
            refused = [error]
    assert (refused == [None]) == ((source.value, to.value) in allowed)


def test_batches_that_nobody_works_on_are_seen(database: Database) -> None:
    def forgotten() -> int:
        with database.read() as connection:
            return batches.count_forgotten(connection, 60)

    with database.write() as connection:
        project = add_project(connection)
        waiting, new = add(connection, project, IN_PROGRESS), add(connection, project)
    assert forgotten() == 0
    with database.write() as connection:
        connection.execute(update(table).values(created_at=now() - 61))
    # The one whose requests may be asked waits for its turn, perhaps.
    assert forgotten() == 1
    assert claimed(database).id == new.id
    assert forgotten() == 0
    assert claimed(database, ttl_seconds=-61).id == waiting.id
    assert forgotten() == 1
