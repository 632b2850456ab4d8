"""Pausing and resuming at every moment of a job's life, and what a pause meets on its way."""

import pytest
from sqlalchemy import update

from app.db.database import Database
from app.db.repositories import events, jobs, leases
from app.db.repositories.jobs import Job
from app.db.tables import jobs as job_table
from app.domain.errors import InvalidTransition, LeaseLost, NotFound
from app.domain.job_state import TERMINAL, JobStatus
from app.resources import Resources
from app.services.jobs import cancel, pause, resume
from app.services.sweeper import Sweeper
from app.services.validation import validate
from tests.support.factories import (
    add_job,
    add_job_in,
    add_project,
    add_queued_job,
    add_running_job,
    store_dataset,
)
from tests.support.sweeping import now_is


def with_spec(database: Database, job: Job) -> None:
    with database.write() as connection:
        connection.execute(
            update(job_table).where(job_table.c.id == job.id).values(spec="resolved")
        )


def test_a_queued_job_pauses_at_once_and_is_queued_again(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_queued_job(connection, project)
        leases.mark_dispatched(connection, [job.id])
        assert pause(connection, project, job.id).status is JobStatus.PAUSED
        assert leases.claim_next(connection, "me", 60) is None
    with_spec(database, job)
    with database.write() as connection:
        resumed = resume(connection, project, job.id)
        assert resumed.status is JobStatus.QUEUED
        assert leases.list_undispatched(connection, 60, 10) == [job.id]
        claimed = leases.claim_next(connection, "me", 60)
    assert claimed is not None
    assert claimed.id == job.id


def test_a_job_that_is_being_validated_pauses_and_is_validated_later(
    resources: Resources, database: Database
) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project)
        job = add_job(connection, project, training_file=file.id)
        assert pause(connection, project, job.id).status is JobStatus.PAUSED
    # The validation that was under way comes to its end now: it must not undo the pause.
    validate(database, resources.storage, resources.catalogue, job)
    assert now_is(resources, job).status is JobStatus.PAUSED
    with database.write() as connection:
        assert resume(connection, project, job.id).status is JobStatus.VALIDATING_FILES
    Sweeper(resources).sweep()
    assert now_is(resources, job).status is JobStatus.QUEUED


def test_a_running_job_pauses_when_its_worker_gives_it_back(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        told = pause(connection, project, job.id)
        assert (told.status, told.pause_requested) == (JobStatus.RUNNING, True)
        assert leases.renew(connection, job.id, 1, 60).pause_requested
        leases.write_checkpoint(connection, job.id, 1, "jobs/x/e1/step-4", 4)
        given = leases.give_back(connection, job.id, 1, "Stopped", level="info")
    assert (given.status, given.pause_requested) == (JobStatus.PAUSED, False)
    assert (given.resume_prefix, given.resume_step) == ("jobs/x/e1/step-4", 4)
    assert (given.lease_owner, given.lease_expires_at) == (None, None)
    with database.write() as connection, pytest.raises(LeaseLost):
        leases.write(connection, job.id, 1)


def test_a_pause_can_be_taken_back_before_it_takes_effect(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        pause(connection, project, job.id)
        taken_back = resume(connection, project, job.id)
        assert (taken_back.status, taken_back.pause_requested) == (JobStatus.RUNNING, False)
        given = leases.give_back(connection, job.id, 1, "Stopped", level="info")
    assert given.status is JobStatus.QUEUED


def test_a_job_whose_worker_is_lost_before_its_pause_is_paused(
    resources: Resources, sweeper: Sweeper
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project, lease_seconds=-1)
        pause(connection, project, job.id)
    sweeper.sweep()
    after = now_is(resources, job)
    assert (after.status, after.pause_requested) == (JobStatus.PAUSED, False)


def test_a_pause_that_comes_too_late_leaves_no_trace_on_the_result(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        pause(connection, project, job.id)
        done = jobs.transition(connection, job.id, JobStatus.SUCCEEDED, message="done", epoch=1)
    assert (done.status, done.pause_requested) == (JobStatus.SUCCEEDED, False)


def test_a_paused_job_can_be_cancelled(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_queued_job(connection, project)
        pause(connection, project, job.id)
        assert cancel(connection, project, job.id).status is JobStatus.CANCELLED
        with pytest.raises(InvalidTransition, match="only a paused job"):
            resume(connection, project, job.id)


@pytest.mark.parametrize("status", [*sorted(TERMINAL), JobStatus.PAUSED])
def test_what_cannot_pause_is_told_so_and_stays(database: Database, status: JobStatus) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job_in(connection, project, status)
        with pytest.raises(InvalidTransition, match=status):
            pause(connection, project, job.id)
        assert jobs.get(connection, project, job.id) == job


@pytest.mark.parametrize("status", [status for status in JobStatus if status != JobStatus.PAUSED])
def test_what_is_not_paused_cannot_be_resumed(database: Database, status: JobStatus) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job_in(connection, project, status)
        with pytest.raises(InvalidTransition, match=status):
            resume(connection, project, job.id)
        assert jobs.get(connection, project, job.id) == job


def test_a_second_wish_to_pause_is_refused_and_told_once(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        pause(connection, project, job.id)
        with pytest.raises(InvalidTransition, match="about to pause"):
            pause(connection, project, job.id)
        page = events.list_page(connection, job.id, after=None, limit=10)
    assert sum("Pause requested" in event.message for event in page.items) == 1


def test_nobody_pauses_or_resumes_a_strangers_job(database: Database) -> None:
    with database.write() as connection:
        job = add_queued_job(connection, add_project(connection))
        stranger = add_project(connection, "stranger")
        for act in (pause, resume):
            with pytest.raises(NotFound):
                act(connection, stranger, job.id)
