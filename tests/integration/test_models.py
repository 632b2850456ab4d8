"""Deleting a model: its names, and then its weights."""

from pathlib import Path

from app.base_models import load_catalogue
from app.db.database import Database
from app.db.repositories import adapters
from app.db.repositories.jobs import Job
from app.domain.job_state import JobStatus
from app.services import models
from tests.support.factories import BASE_MODEL, add_job_in, add_project

# The default one: there is no such file.
CATALOGUE = load_catalogue(Path("/none"))


def name(database: Database, job: Job, name: str, prefix: str, *, is_final: bool) -> None:
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
            is_final=is_final,
        )


def finished(database: Database) -> Job:
    with database.write() as connection:
        job = add_job_in(connection, add_project(connection), JobStatus.SUCCEEDED)
    name(database, job, "ft:x", "jobs/x/e1/step-4", is_final=True)
    name(database, job, "ft:x:ckpt-step-4", "jobs/x/e1/step-4", is_final=False)
    name(database, job, "ft:x:ckpt-step-2", "jobs/x/e1/step-2", is_final=False)
    return job


def left(database: Database, job: Job) -> set[str]:
    with database.read() as connection:
        return {one.name for one in adapters.list_of_job(connection, job.id)}


def remove(database: Database, job: Job, name: str) -> str | None:
    with database.write() as connection:
        return models.remove(connection, CATALOGUE, job.project_id, name)


def test_with_a_model_goes_its_last_checkpoint_and_all_of_its_weights(database: Database) -> None:
    job = finished(database)
    assert remove(database, job, "ft:x") == "jobs/x/e1/step-4"
    assert left(database, job) == {"ft:x:ckpt-step-2"}


def test_a_checkpoint_goes_alone_and_weights_that_are_still_called_stay(
    database: Database,
) -> None:
    job = finished(database)
    assert remove(database, job, "ft:x:ckpt-step-4") is None
    assert remove(database, job, "ft:x:ckpt-step-2") == "jobs/x/e1/step-2"
    assert left(database, job) == {"ft:x"}
