"""The runner of batches in the small: what is written down, and what a successor makes of it."""

import asyncio
import io
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from app.api.batch_wire import OpenAIWire
from app.db.clock import now
from app.db.database import Database
from app.db.repositories import batch_chunks, batch_leases, batches, files
from app.db.repositories.batches import Batch
from app.db.tables import batch_chunks as chunk_table
from app.db.tables import batches as table
from app.db.tables import files as file_table
from app.domain.batches import MAX_BYTES, BatchStatus
from app.domain.errors import LeaseLost, TooLarge
from app.resources import Resources
from app.services import garbage
from app.services.batches.asking import PATIENCE, Patience
from app.services.batches.ending import end
from app.services.batches.holding import Hold
from app.services.batches.ledger import Ledger
from app.services.batches.requests import BatchRequest, create
from app.services.batches.results import answered
from app.services.batches.runner import BatchRunner
from app.services.files import store
from tests.support.batching import CHAT, as_input, chat_line, lines_of, refuse_lost_and_doubled
from tests.support.factories import add_project
from tests.support.fake_engine import REFUSE, SAY, UNHURRIED, FakeEngine, serving
from tests.support.ports import free_port
from tests.support.sweeping import opened

ASKED = [f"line {number}" for number in range(1, 9)]


@pytest.fixture
def resources(database: Database, tmp_path: Path, fake_engine: FakeEngine) -> Iterator[Resources]:
    with opened(
        database,
        f"filesystem://{tmp_path}/broker",
        tmp_path,
        engine_url=fake_engine.url,
        sweep_interval_seconds=0.05,
    ) as resources:
        yield resources


@contextmanager
def changed(resources: Resources, **changes: Any) -> Iterator[Resources]:
    """Open the same installation with other settings."""
    others = Resources(replace(resources.settings, **changes))
    yield others
    others.database.engine.dispose()


@asynccontextmanager
async def running(
    resources: Resources, patience: Patience = PATIENCE
) -> AsyncIterator[BatchRunner]:
    """Run a runner until the block ends, with parts of its own, as another process has."""
    own = Resources(resources.settings)
    runner = BatchRunner(own, OpenAIWire(), patience)
    runner.start()
    try:
        yield runner
    finally:
        await runner.close()
        await own.engine.close()
        own.database.engine.dispose()


def submit(
    resources: Resources, lines: list[dict[str, Any]], *, project_name: str = "default"
) -> Batch:
    with resources.database.write() as connection:
        project = add_project(connection, project_name)
    content = as_input(lines)
    file = store(
        resources.storage,
        io.BytesIO(content),
        project_id=project,
        purpose="batch",
        filename="requests.jsonl",
        max_bytes=len(content),
        min_free_bytes=0,
        expires_after_seconds=3_600,
    )
    with resources.database.write() as connection:
        files.add(connection, file)
        request = BatchRequest(CHAT, "24h", file.id, None, None)
        return create(connection, project, request)


def submit_valid(resources: Resources) -> Batch:
    """Add a batch whose lines are all to be asked."""
    batch = submit(resources, [chat_line(one, SAY + one) for one in ASKED])
    with resources.database.write() as connection:
        connection.execute(
            update(table)
            .where(table.c.id == batch.id)
            .values(status=BatchStatus.IN_PROGRESS, line_count=len(ASKED))
        )
    return batch


def now_is(resources: Resources, batch: Batch) -> Batch:
    with resources.database.read() as connection:
        return batches.get(connection, batch.project_id, batch.id)


async def until(resources: Resources, batch: Batch, status: BatchStatus) -> Batch:
    async with asyncio.timeout(20):
        while (seen := now_is(resources, batch)).status is not status:
            await asyncio.sleep(0.02)
    return seen


def held(resources: Resources, *, ttl_seconds: float = 60) -> tuple[Batch, Hold]:
    with resources.database.write() as connection:
        batch = batch_leases.claim_next(connection, "someone", ttl_seconds, ())
    assert batch is not None
    return batch, Hold(resources.database, batch, ttl_seconds)


def results_of(resources: Resources, batch: Batch) -> list[dict[str, Any]]:
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is not None:
            with resources.storage.open(f"files/{file_id}") as stream:
                found += lines_of(stream.read())
    return found


def close(resources: Resources, batch: Batch) -> Batch:
    """Bring a batch whose lines are all answered to `finalizing`."""
    with resources.database.write() as connection:
        return batch_leases.move(
            connection,
            batch.id,
            batch.lease_epoch,
            BatchStatus.IN_PROGRESS,
            BatchStatus.FINALIZING,
            keep_lease=True,
        )


def answer(ledger: Ledger, numbers: range, text: str) -> None:
    for number in numbers:
        ledger.add(answered(number, f"line {number}", {"text": text}))


def test_a_holder_that_wakes_up_late_doubles_nothing(resources: Resources) -> None:
    submit_valid(resources)
    batch, frozen = held(resources, ttl_seconds=-1)
    late = Ledger(resources, frozen, 1)
    answer(late, range(1, 4), "of the first")
    late.record()
    answer(late, range(4, 9), "too late")
    batch, hold = held(resources)
    with resources.database.write() as connection:
        # The writes of the first have renewed its lease: it froze after that.
        chunks = batch_chunks.list_of_batch(connection, batch.id)
    ledger = Ledger(resources, hold, len(chunks) + 1)
    answer(ledger, range(4, 9), "of the second")
    with pytest.raises(LeaseLost):
        late.record()
    ledger.record()
    end(resources, hold, close(resources, batch))
    results = results_of(resources, now_is(resources, batch))
    refuse_lost_and_doubled(ASKED, results)
    texts = [one["response"]["body"]["text"] for one in results]
    assert texts == ["of the first"] * 3 + ["of the second"] * 5
    assert resources.storage.list("batches") == []


def test_a_holder_past_the_fence_would_be_found(resources: Resources) -> None:
    """The negative control of the test above, and of all that look for lost and doubled lines."""
    submit_valid(resources)
    batch, hold = held(resources)
    ledger = Ledger(resources, hold, 1)
    answer(ledger, range(1, 9), "once")
    ledger.record()
    key = f"batches/{batch.id}/unfenced"
    with resources.storage.open(f"batches/{batch.id}/e1-1") as stream:
        resources.storage.put(key, [stream.read()])
    with resources.database.write() as connection:
        row = {"batch_id": batch.id, "number": 2, "storage_key": key, "lines": [2, 3]}
        connection.execute(insert(chunk_table).values(row))
    end(resources, hold, close(resources, batch))
    results = results_of(resources, now_is(resources, batch))
    with pytest.raises(AssertionError, match=r"doubled: .'line 2', 'line 3'"):
        refuse_lost_and_doubled(ASKED, results)
    with pytest.raises(AssertionError, match=r"lost: .'line 8'"):
        refuse_lost_and_doubled(ASKED, results[:-1])


def test_a_runner_that_is_closed_leaves_what_is_answered_to_the_next(
    resources: Resources, fake_engine: FakeEngine
) -> None:
    mark = secrets.token_hex(4)
    asked = [f"line {number}" for number in range(20)]
    batch = submit(resources, [chat_line(one, f"{UNHURRIED}, {mark}") for one in asked])

    async def until_answered(count: int) -> None:
        async with running(two_at_a_time), asyncio.timeout(20):
            while now_is(resources, batch).completed_lines < count:
                await asyncio.sleep(0.02)

    with changed(resources, batch_parallel=2) as two_at_a_time:
        asyncio.run(until_answered(1))
        left = now_is(resources, batch)
        assert (left.status, left.lease_owner) == (BatchStatus.IN_PROGRESS, None)
        assert left.completed_lines < len(asked)
        asyncio.run(until_answered(len(asked)))

    async def end_it() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.COMPLETED)

    refuse_lost_and_doubled(asked, results_of(resources, asyncio.run(end_it())))
    # Only what was being asked at the moment of closing is asked twice.
    sent = [one for one in fake_engine.requests if mark in json.dumps(one)]
    assert len(asked) <= len(sent) <= len(asked) + 2


def test_one_that_died_while_ending_is_followed(resources: Resources) -> None:
    submit_valid(resources)
    batch, hold = held(resources)
    ledger = Ledger(resources, hold, 1)
    answer(ledger, range(1, 9), "once")
    ledger.record()
    close(resources, batch)
    with resources.database.write() as connection:
        batch_leases.renew(connection, batch.id, batch.lease_epoch, -1)

    async def run() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.COMPLETED)

    ended = asyncio.run(run())
    assert (ended.lease_epoch, ended.completed_lines) == (2, 8)
    refuse_lost_and_doubled(ASKED, results_of(resources, ended))


def test_content_that_is_gone_fails_the_batch(resources: Resources) -> None:
    batch = submit_valid(resources)
    resources.storage.delete(f"files/{batch.input_file_id}")

    async def run() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.FAILED)

    failed = asyncio.run(run())
    assert failed.errors is not None
    assert [one.code for one in failed.errors] == ["input_file_missing"]


def test_an_input_past_its_time_is_kept_for_its_batch(resources: Resources) -> None:
    batch = submit_valid(resources)
    with resources.database.write() as connection:
        connection.execute(update(file_table).values(expires_at=now() - 1))
        assert files.list_expired(connection, 10) == []

    async def run() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.COMPLETED)

    refuse_lost_and_doubled(ASKED, results_of(resources, asyncio.run(run())))
    with resources.database.read() as connection:
        expired = [one.id for one in files.list_expired(connection, 10)]
    assert expired == [batch.input_file_id]


def test_what_a_latecomer_stored_is_deleted(resources: Resources) -> None:
    living = submit_valid(resources)
    for name in (living.id, "batch_ended"):
        resources.storage.put(f"batches/{name}/e1-1", [b"1 0 {}\n"])
    assert garbage.sweep_batches(resources.database, resources.storage) == 1
    assert resources.storage.list("batches") == [living.id]


def test_an_engine_that_fails_at_a_line_every_time(
    resources: Resources, fake_engine: FakeEngine
) -> None:
    mark = secrets.token_hex(4)
    # Only the first line of a prompt is what the fake engine goes by.
    ill = chat_line("ill", f"{REFUSE}503\n{mark}")
    batch = submit(resources, [ill, chat_line("well", SAY + "yes")])

    async def run() -> Batch:
        async with running(resources, Patience(3, 0.001, 0.01)):
            return await until(resources, batch, BatchStatus.COMPLETED)

    ended = asyncio.run(run())
    assert (ended.completed_lines, ended.failed_lines) == (1, 1)
    good, bad = results_of(resources, ended)
    assert (good["custom_id"], bad["custom_id"]) == ("well", "ill")
    assert bad["response"]["status_code"] == 503
    assert bad["response"]["body"]["error"]["code"] == "engine_unavailable"
    assert len([one for one in fake_engine.requests if mark in json.dumps(one)]) == 3


def test_an_engine_that_is_away_is_waited_for(resources: Resources) -> None:
    port = free_port()
    batch = submit(resources, [chat_line(one, SAY + one) for one in ASKED])

    async def run() -> Batch:
        async with running(absent, Patience(2, 0.02, 0.02)):
            await until(resources, batch, BatchStatus.IN_PROGRESS)
            # Longer than all the failures of a line would take.
            await asyncio.sleep(0.3)
            with serving(FakeEngine(), port):
                return await until(resources, batch, BatchStatus.COMPLETED)

    with changed(resources, engine_url=f"http://127.0.0.1:{port}") as absent:
        ended = asyncio.run(run())
    assert (ended.completed_lines, ended.failed_lines) == (len(ASKED), 0)


def test_batches_take_turns_line_by_line(resources: Resources) -> None:
    long = submit(resources, [chat_line(f"{n}", UNHURRIED) for n in range(60)])

    async def run() -> None:
        async with running(two_at_a_time) as runner:
            await until(resources, long, BatchStatus.IN_PROGRESS)
            lines = [chat_line(f"{n}", UNHURRIED) for n in range(4)]
            short = submit(resources, lines, project_name="other")
            runner.poke()
            await until(resources, short, BatchStatus.COMPLETED)

    # Two at a time take a tenth of a second: without turns the long one would come first.
    with changed(resources, batches_parallel=2) as two_at_a_time:
        asyncio.run(run())
    assert 0 < now_is(resources, long).completed_lines < 50


def test_one_that_is_cancelled_before_anybody_looked(resources: Resources) -> None:
    batch = submit(resources, [chat_line("a", "x")])
    with resources.database.write() as connection:
        batches.cancel(connection, batch.project_id, batch.id)

    async def run() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.CANCELLED)

    ended = asyncio.run(run())
    assert (ended.line_count, ended.failed_lines, ended.in_progress_at) == (0, 0, None)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)


def test_one_that_cannot_be_checked_in_time_fails(resources: Resources) -> None:
    batch = submit(resources, [chat_line("a", "x")])
    with resources.database.write() as connection:
        connection.execute(update(table).values(expires_at=now() - 1))

    async def run() -> Batch:
        async with running(resources):
            return await until(resources, batch, BatchStatus.FAILED)

    failed = asyncio.run(run())
    assert [one.code for one in failed.errors or ()] == ["batch_expired"]


def test_an_input_is_no_longer_than_a_batch_may_be(resources: Resources, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as stream:
        # It takes no room, but is as long as it says.
        stream.truncate(MAX_BYTES + 1)
    with path.open("rb") as stream, pytest.raises(TooLarge, match="200,000,000 bytes"):
        store(
            resources.storage,
            stream,
            project_id="proj",
            purpose="batch",
            filename="long.jsonl",
            max_bytes=1 << 30,
            min_free_bytes=0,
            expires_after_seconds=None,
        )
    assert resources.storage.list("files") == []
