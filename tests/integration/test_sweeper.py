"""The sweep on each engine with each broker: what must happen to a row though nobody asks."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.base_models.catalogue import DEFAULT_CATALOGUE
from app.db.clock import now
from app.db.database import Database
from app.db.repositories import events, files, jobs, leases, locks
from app.db.repositories.jobs import Job
from app.db.tables import files as file_table
from app.db.tables import jobs as job_table
from app.domain.errors import NotFound
from app.domain.job_spec import JobSpec
from app.domain.job_state import JobStatus
from app.queue import RUN_JOB
from app.resources import Resources
from app.services.sweeper import LOCK, Sweeper
from app.settings import load_settings
from tests.support.factories import (
    BASE_MODEL,
    add_job,
    add_project,
    add_queued_job,
    add_running_job,
    dataset,
    store_dataset,
)
from tests.support.polling import eventually
from tests.support.servers import running_valkey


@pytest.fixture(params=["filesystem", "valkey"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "valkey":
        url: str = request.getfixturevalue("valkey_url")
        return url
    return f"filesystem://{tmp_path}/broker"


@pytest.fixture
def resources(database: Database, broker_url: str, tmp_path: Path) -> Iterator[Resources]:
    with opened(database, broker_url, tmp_path) as resources:
        # The server of the session may hold what another test sent.
        received(resources)
        yield resources


@pytest.fixture
def sweeper(resources: Resources) -> Sweeper:
    return Sweeper(resources)


@contextmanager
def opened(
    database: Database, broker_url: str, directory: Path, **changes: Any
) -> Iterator[Resources]:
    settings = replace(
        load_settings({"TUNESMITH_DATA_DIR": str(directory)}),
        database_url=database.engine.url.render_as_string(hide_password=False),
        broker_url=broker_url,
        max_attempts=2,
        **changes,
    )
    resources = Resources(settings)
    yield resources
    resources.database.engine.dispose()
    resources.celery.close()


def received(resources: Resources) -> list[str]:
    """Take every message from the broker and return the ids of the jobs, in no special order."""
    ids = []
    with resources.celery.connection_for_read() as connection:
        channel = connection.default_channel
        while message := channel.basic_get("train", no_ack=True):
            assert message.headers["task"] == RUN_JOB
            arguments, named, _ = json.loads(message.body)
            assert named == {}
            ids += arguments
    return sorted(ids)


def queued(resources: Resources, count: int = 1) -> list[Job]:
    with resources.database.write() as connection:
        project = add_project(connection)
        return [add_queued_job(connection, project) for _ in range(count)]


def new_job(resources: Resources, content: bytes | None = None) -> Job:
    """Add a job whose training file is stored."""
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project, content)
        return add_job(connection, project, training_file=file.id, seed=7)


def now_is(resources: Resources, job: Job) -> Job:
    with resources.database.read() as connection:
        return jobs.get(connection, job.project_id, job.id)


def told(resources: Resources, job: Job) -> list[str]:
    with resources.database.read() as connection:
        page = events.list_page(connection, job.id, after=None, limit=100)
    return [event.message for event in page.items][::-1]


def test_a_new_job_is_validated_resolved_and_sent(resources: Resources, sweeper: Sweeper) -> None:
    job = new_job(resources, dataset(12))
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.QUEUED
    assert after.hyperparameters == {
        "n_epochs": 10,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    assert after.spec is not None
    spec = JobSpec.from_json(after.spec)
    assert (spec.job_id, spec.base_model, spec.seed) == (job.id, BASE_MODEL, 7)
    assert spec.training_file.record_count == 12
    assert spec.hyperparameters.num_epochs == 10
    assert after.dispatched_at is not None
    assert received(resources) == [job.id]


def test_every_auto_value_is_told_with_its_reason(resources: Resources, sweeper: Sweeper) -> None:
    job = new_job(resources)
    sweeper.sweep()
    story = told(resources, job)
    assert story[1] == "Files validated, moving job to queued state"
    assert [line.split(" = ")[0] for line in story[2:]] == [
        "n_epochs",
        "batch_size",
        "learning_rate_multiplier",
    ]
    assert all("(auto: " in line for line in story[2:])


def test_records_are_never_cut_beyond_the_models_context(
    resources: Resources, sweeper: Sweeper
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project)
        training = {"max_length_tokens": 10**9}
        job = add_job(
            connection,
            project,
            training_file=file.id,
            extension={"adapter": {}, "training": training},
        )
    sweeper.sweep()
    spec = JobSpec.from_json(now_is(resources, job).spec or "")
    context_length = resources.catalogue.get(BASE_MODEL).context_length
    assert spec.hyperparameters.max_length_tokens == context_length


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
@pytest.mark.parametrize("mishap", ["damaged", "deleted"])
def test_a_job_without_its_content_fails_by_the_field(
    resources: Resources, sweeper: Sweeper, param: str, mishap: str
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        good, bad = (store_dataset(connection, resources.storage, project) for _ in range(2))
        job = add_job(connection, project, **({"training_file": good.id} | {param: bad.id}))
        if mishap == "deleted":
            files.remove(connection, project, bad.id)
    if mishap == "damaged":
        resources.storage.delete(bad.storage_key)
        resources.storage.put(bad.storage_key, [b"something else"])
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert after.error["param"] == param
    assert after.error["code"] == ("file_damaged" if mishap == "damaged" else "file_not_found")
    assert bad.id in after.error["message"]
    assert after.finished_at is not None
    assert received(resources) == []


def test_a_job_whose_base_model_left_the_catalogue_fails(
    resources: Resources, sweeper: Sweeper
) -> None:
    job = new_job(resources)
    text = DEFAULT_CATALOGUE.read_text().replace(f'"{BASE_MODEL}"', '"another"')
    resources.settings.catalogue_path.write_text(text)
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert after.error["code"] == "model_not_found"


def test_a_job_that_cannot_be_checked_for_now_holds_up_no_other(
    resources: Resources, sweeper: Sweeper
) -> None:
    stuck, other = new_job(resources), new_job(resources)
    with resources.database.read() as connection:
        file = files.get(connection, stuck.project_id, stuck.training_file)
    # Reading a directory fails as a disk does: with an OSError.
    resources.storage.delete(file.storage_key)
    resources.storage.put(f"{file.storage_key}/something", [b"else"])
    for _ in range(2):
        try:
            sweeper.sweep()
        except OSError:
            continue
    assert now_is(resources, other).status is JobStatus.QUEUED
    assert received(resources) == [other.id]


def test_a_message_holds_one_id_and_is_sent_once(resources: Resources, sweeper: Sweeper) -> None:
    made = queued(resources, 3)
    for _ in range(3):
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
