"""What is deleted from storage, and above all what is not."""

import os
from pathlib import Path

import pytest

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import adapters, jobs
from app.db.repositories.jobs import Job
from app.db.tables import jobs as job_table
from app.domain.job_state import JobStatus
from app.services.garbage import sweep_abandoned, sweep_jobs, sweep_orphans
from app.storage.local import LocalStorage
from tests.support.factories import BASE_MODEL, add_project, add_running_job, store_dataset

TTL_SECONDS = 4.0
DAY_SECONDS = 86_400


def set_columns(database: Database, job: Job, **columns: object) -> None:
    with database.write() as connection:
        connection.execute(job_table.update().where(job_table.c.id == job.id).values(**columns))


def publish(storage: LocalStorage, job: Job, epoch: int, step: int) -> str:
    scratch = storage.scratch()
    for part in ("adapter", "state"):
        (scratch / part).mkdir()
        (scratch / part / "weights").write_text("1")
    prefix = f"jobs/{job.id}/e{epoch}/step-{step}"
    storage.publish(prefix, scratch)
    return prefix


def name_adapter(database: Database, job: Job, prefix: str, name: str = "ft:one") -> None:
    with database.write() as connection:
        adapters.add(
            connection,
            name=name,
            project_id=job.project_id,
            job_id=job.id,
            base_model=BASE_MODEL,
            task="text-generation",
            storage_prefix=f"{prefix}/adapter",
            manifest_sha256="0" * 64,
            step=1,
            is_final=True,
        )


def left(storage: LocalStorage, job: Job) -> set[str]:
    return {
        f"e{epoch.removeprefix('e')}/{step}"
        for epoch in storage.list(f"jobs/{job.id}")
        for step in storage.list(f"jobs/{job.id}/{epoch}")
    }


@pytest.fixture
def running(database: Database) -> Job:
    """A job in its third attempt."""
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
    set_columns(database, job, lease_epoch=3)
    with database.read() as connection:
        return jobs.get(connection, job.project_id, job.id)


def test_of_a_running_job_what_can_still_be_named_is_kept(
    database: Database, storage: LocalStorage, running: Job
) -> None:
    for epoch, step in [(1, 2), (1, 4), (2, 4), (2, 6), (2, 8), (3, 8), (3, 10), (3, 12)]:
        publish(storage, running, epoch, step)
    name_adapter(database, running, f"jobs/{running.id}/e1/step-2")
    set_columns(
        database,
        running,
        resume_prefix=f"jobs/{running.id}/e3/step-10",
        resume_step=10,
        fallback_prefix=f"jobs/{running.id}/e2/step-8",
        fallback_step=8,
    )
    assert sweep_jobs(database, storage, TTL_SECONDS) == 4
    # Named; to fall back to; to resume from; just published, and about to be told of.
    assert left(storage, running) == {"e1/step-2", "e2/step-8", "e3/step-10", "e3/step-12"}
    assert sweep_jobs(database, storage, TTL_SECONDS) == 0


def test_a_first_checkpoint_that_no_row_names_yet_is_kept(
    database: Database, storage: LocalStorage, running: Job
) -> None:
    publish(storage, running, 3, 1)
    assert sweep_jobs(database, storage, TTL_SECONDS) == 0
    assert left(storage, running) == {"e3/step-1"}


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.PAUSED])
def test_of_a_waiting_job_its_checkpoints_are_kept(
    database: Database, storage: LocalStorage, running: Job, status: JobStatus
) -> None:
    kept = publish(storage, running, 3, 5)
    publish(storage, running, 3, 6)
    set_columns(database, running, status=status, resume_prefix=kept, resume_step=5)
    assert sweep_jobs(database, storage, TTL_SECONDS) == 1
    assert left(storage, running) == {"e3/step-5"}


def end(database: Database, job: Job, seconds_ago: float) -> None:
    set_columns(database, job, status=JobStatus.SUCCEEDED, finished_at=now() - seconds_ago)


def test_of_an_ended_job_only_what_can_be_called_is_kept(
    database: Database, storage: LocalStorage, running: Job
) -> None:
    final = publish(storage, running, 3, 9)
    publish(storage, running, 3, 8)
    publish(storage, running, 2, 8)
    name_adapter(database, running, final)
    set_columns(database, running, resume_prefix=final, resume_step=9)
    end(database, running, 60)
    assert sweep_jobs(database, storage, TTL_SECONDS) == 3
    assert left(storage, running) == {"e3/step-9"}
    assert storage.list(final) == ["adapter"]
    assert storage.list(f"jobs/{running.id}") == ["e3"]
    with database.read() as connection:
        after = jobs.get(connection, running.project_id, running.id)
    assert after.resume_prefix is None
    assert after.storage_swept_at is not None


def test_a_job_that_just_ended_waits_for_those_who_do_not_know_yet(
    database: Database, storage: LocalStorage, running: Job
) -> None:
    publish(storage, running, 3, 9)
    end(database, running, 1)
    assert sweep_jobs(database, storage, TTL_SECONDS) == 0
    end(database, running, 3 * TTL_SECONDS)
    assert sweep_jobs(database, storage, TTL_SECONDS) == 1


def test_a_model_that_was_deleted_halfway_is_swept_with_its_job(
    database: Database, storage: LocalStorage, running: Job
) -> None:
    final = publish(storage, running, 3, 9)
    name_adapter(database, running, final)
    end(database, running, 60)
    sweep_jobs(database, storage, TTL_SECONDS)
    with database.write() as connection:
        adapters.remove(connection, running.project_id, "ft:one")
        jobs.sweep_again(connection, running.id)
    # The process was killed here, between the row and the content.
    assert sweep_jobs(database, storage, TTL_SECONDS) == 1
    assert left(storage, running) == set()


def age(path: Path, seconds: float) -> None:
    moment = path.stat().st_mtime - seconds
    for one in (*path.rglob("*"), path):
        os.utime(one, (moment, moment))


def test_content_without_a_row_is_deleted_once_it_is_old(
    database: Database, storage: LocalStorage, tmp_path: Path
) -> None:
    with database.write() as connection:
        file = store_dataset(connection, storage, add_project(connection))
    storage.put("files/file-orphan", [b"1"])
    storage.put("files/file-new", [b"1"])
    for name in (file.id, "file-orphan"):
        age(tmp_path / "storage" / "files" / name, 2 * DAY_SECONDS)
    assert sweep_orphans(database, storage) == 1
    assert set(storage.list("files")) == {file.id, "file-new"}


def test_what_was_begun_long_ago_is_deleted_and_what_grows_is_not(
    storage: LocalStorage,
) -> None:
    old, growing = storage.scratch(), storage.scratch()
    for scratch in (old, growing):
        (scratch / "part").write_text("1")
        age(scratch, 2 * 3_600)
    (growing / "part").write_text("12")
    assert sweep_abandoned(storage) == 1
    assert not old.exists()
    assert growing.exists()
