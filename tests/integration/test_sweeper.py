"""What must happen to a row though nobody asks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import files, leases, locks
from app.db.repositories.jobs import Job
from app.db.tables import files as file_table
from app.db.tables import jobs as job_table
from app.domain.errors import NotFound
from app.domain.job_state import JobStatus
from app.resources import Resources
from app.services.sweeper import BATCH, LOCK, Sweeper
from tests.support.factories import add_project, add_running_job, store_dataset
from tests.support.polling import eventually
from tests.support.servers import running_valkey
from tests.support.sweeping import now_is, opened, queued, received, told


def test_a_message_holds_one_id_and_is_sent_once(resources: Resources, sweeper: Sweeper) -> None:
    made = queued(resources, 3)
    for _ in range(3):
        sweeper.sweep()
    assert received(resources) == sorted(job.id for job in made)


def test_messages_do_not_pile_up_while_every_worker_is_busy(
    resources: Resources, sweeper: Sweeper
) -> None:
    made = queued(resources, BATCH)
    sweeper.sweep()
    for _ in range(3):
        with resources.database.write() as connection:
            connection.execute(update(job_table).values(dispatched_at=now() - 61))
        sweeper.sweep()
    assert received(resources) == sorted(job.id for job in made)
    # Once they were taken, whatever still waits is announced again.
    with resources.database.write() as connection:
        connection.execute(update(job_table).values(dispatched_at=now() - 61))
    sweeper.sweep()
    assert received(resources) == sorted(job.id for job in made)


def test_a_message_that_led_to_nothing_is_sent_again(
    resources: Resources, sweeper: Sweeper
) -> None:
    (job,) = queued(resources)
    sweeper.sweep()
    assert received(resources) == [job.id]
    with resources.database.write() as connection:
        connection.execute(update(job_table).values(dispatched_at=now() - 61))
    sweeper.sweep()
    assert received(resources) == [job.id]


def test_a_job_whose_worker_fell_silent_is_queued_and_sent_again(
    resources: Resources, sweeper: Sweeper
) -> None:
    with resources.database.write() as connection:
        job = add_running_job(connection, add_project(connection), lease_seconds=-1)
        leases.mark_dispatched(connection, [job.id])
        leases.write(connection, job.id, 1, resume_prefix="jobs/x/e1/step-5", resume_step=5)
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.QUEUED
    assert (after.lease_owner, after.lease_expires_at) == (None, None)
    assert (after.resume_prefix, after.resume_step) == ("jobs/x/e1/step-5", 5)
    assert "fell silent" in told(resources, job)[-1]
    assert "step 5" in told(resources, job)[-1]
    assert received(resources) == [job.id]


def test_a_job_that_loses_every_worker_fails(resources: Resources, sweeper: Sweeper) -> None:
    with resources.database.write() as connection:
        job = add_running_job(connection, add_project(connection), lease_seconds=-1)
        leases.write(connection, job.id, 1, attempts=2)
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert after.error["code"] == "worker_lost"
    assert "2 times" in after.error["message"]
    assert after.finished_at is not None
    assert received(resources) == []


def test_a_job_under_a_live_lease_is_left_alone(resources: Resources, sweeper: Sweeper) -> None:
    with resources.database.write() as connection:
        job = add_running_job(connection, add_project(connection))
    sweeper.sweep()
    assert now_is(resources, job) == job


def test_an_expired_file_is_deleted_with_its_content(
    resources: Resources, sweeper: Sweeper
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        old, other = (store_dataset(connection, resources.storage, project) for _ in range(2))
        connection.execute(
            update(file_table).where(file_table.c.id == old.id).values(expires_at=1.0)
        )
    sweeper.sweep()
    with pytest.raises(NotFound):
        resources.storage.open(old.storage_key)
    resources.storage.open(other.storage_key).close()
    with resources.database.read() as connection:
        assert files.list_expired(connection, 10) == []
        assert files.get(connection, project, other.id) == other


def test_while_another_process_sweeps_nothing_is_done(
    resources: Resources, sweeper: Sweeper
) -> None:
    queued(resources)
    with resources.database.write() as connection:
        assert locks.acquire(connection, LOCK, "another process", 60)
    sweeper.sweep()
    assert received(resources) == []
    with resources.database.write() as connection:
        assert locks.acquire(connection, LOCK, "another process", -1)
    sweeper.sweep()
    assert len(received(resources)) == 1


def test_sweepers_that_run_at_once_send_one_message(resources: Resources) -> None:
    made = queued(resources, 5)
    with ThreadPoolExecutor(max_workers=4) as pool:
        swept = [pool.submit(Sweeper(resources).sweep) for _ in range(4)]
    for one in swept:
        one.result()
    assert received(resources) == sorted(job.id for job in made)


def test_a_poked_sweeper_does_not_wait(
    database: Database, broker_url: str, resources: Resources, tmp_path: Path
) -> None:
    with opened(database, broker_url, tmp_path, sweep_interval_seconds=600.0) as slow:
        sweeper = Sweeper(slow)
        (first,) = queued(slow)
        sweeper.start()
        try:
            wait_until_sent(slow, first)
            (second,) = queued(slow)
            sweeper.poke()
            wait_until_sent(slow, second)
        finally:
            sweeper.close()
    assert received(resources) == sorted((first.id, second.id))


def wait_until_sent(resources: Resources, job: Job) -> None:
    eventually(
        lambda: now_is(resources, job).dispatched_at,
        what=f"{job.id} was sent",
        within_seconds=10,
        every_seconds=0.02,
    )


def test_while_valkey_is_away_jobs_wait_and_are_sent_later(
    database: Database, tmp_path: Path
) -> None:
    with (
        running_valkey() as server,
        opened(database, f"redis://127.0.0.1:{server.port}/0", tmp_path) as resources,
    ):
        sweeper = Sweeper(resources)
        first, second = queued(resources, 2)
        server.terminate()
        for _ in range(2):
            sweeper.sweep()
        for job in (first, second):
            assert now_is(resources, job).dispatched_at is None
        server.start()
        sweeper.sweep()
        assert received(resources) == sorted((first.id, second.id))


def test_while_the_brokers_directory_is_away_jobs_wait_and_are_sent_later(
    database: Database, tmp_path: Path
) -> None:
    with opened(database, f"filesystem://{tmp_path}/broker", tmp_path) as resources:
        sweeper = Sweeper(resources)
        received(resources)
        (job,) = queued(resources)
        messages = tmp_path / "broker" / "messages"
        messages.rename(tmp_path / "away")
        messages.write_text("in the way")
        sweeper.sweep()
        assert now_is(resources, job).dispatched_at is None
        messages.unlink()
        (tmp_path / "away").rename(messages)
        sweeper.sweep()
        assert received(resources) == [job.id]


def test_the_brokers_directory_is_its_owners_alone(database: Database, tmp_path: Path) -> None:
    with opened(database, f"filesystem://{tmp_path}/broker", tmp_path) as resources:
        assert resources.celery is not None
    for directory in (tmp_path / "broker").rglob("*"):
        assert directory.stat().st_mode & 0o077 == 0
