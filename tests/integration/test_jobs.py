from itertools import product
from typing import Any

import pytest
from sqlalchemy import update

from app.db.database import Database
from app.db.repositories import events, jobs
from app.db.repositories.jobs import Job
from app.db.tables import jobs as job_table
from app.domain.errors import InvalidInput, InvalidTransition, LeaseLost, NotFound
from app.domain.job_state import TRANSITIONS, JobStatus
from tests.support.factories import (
    add_job,
    add_job_in,
    add_project,
    add_queued_job,
    add_running_job,
)

ODD_TEXTS = [
    "plain",
    "with space",
    "a.b",
    "$.a",
    "$",
    "a'b",
    'a"b',
    "a\\b",
    "a[0]",
    "[0]",
    "0",
    "-1",
    "#",
    "*",
    "%",
    "é ✓ 漢",
    "a:b",
    "{}",
    ",",
]
MORE_VALUES = ["", "true", "null", "1", "1.0", '"quoted"', "x" * 512]


def messages_of(database: Database, job_id: str) -> list[str]:
    with database.read() as connection:
        page = events.list_page(connection, job_id, after=None, limit=100)
    return [event.message for event in page.items][::-1]


def list_jobs(database: Database, project_id: str, **filters: Any) -> list[str]:
    asked = {"metadata": None, "without_metadata": False, "after": None, "limit": 100} | filters
    with database.read() as connection:
        return [job.id for job in jobs.list_page(connection, project_id, **asked).items]


@pytest.mark.parametrize(("source", "target"), list(product(JobStatus, repeat=2)))
def test_a_status_changes_only_along_the_table(
    database: Database, source: JobStatus, target: JobStatus
) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job_in(connection, project, source)
    with database.write() as connection:
        if target in TRANSITIONS[source]:
            assert jobs.transition(connection, job.id, target, message="moved").status is target
        else:
            with pytest.raises(
                InvalidTransition, match=f"{source}.*(cannot become {target}|already)"
            ):
                jobs.transition(connection, job.id, target, message="moved")
    is_told = messages_of(database, job.id)[-1] == "moved"
    assert is_told == (target in TRANSITIONS[source])


def test_a_new_job_is_stored_whole(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job(connection, project, metadata={"a": "b"}, seed=2**31 - 1)
        assert jobs.get(connection, project, job.id) == job
    assert job.status is JobStatus.VALIDATING_FILES
    assert (job.attempts, job.lease_epoch, job.dispatched_at) == (0, 0, None)
    assert job.metadata == {"a": "b"}
    assert messages_of(database, job.id) == [f"Created fine-tuning job: {job.id}"]


def test_another_projects_job_looks_like_none(database: Database) -> None:
    with database.write() as connection:
        other = add_project(connection, "other")
        job = add_job(connection, add_project(connection))
        with pytest.raises(NotFound) as foreign:
            jobs.get(connection, other, job.id)
        with pytest.raises(NotFound) as absent:
            jobs.get(connection, other, "ftjob-none")
    assert foreign.value.message.replace(job.id, "ftjob-none") == absent.value.message


def test_a_transition_and_its_event_are_written_together_or_not_at_all(
    database: Database,
) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job(connection, project)

    class Stop(Exception):
        pass

    def move_and_stop() -> None:
        with database.write() as connection:
            jobs.transition(connection, job.id, JobStatus.QUEUED, message="moved")
            raise Stop

    with pytest.raises(Stop):
        move_and_stop()
    with database.read() as connection:
        assert jobs.get(connection, project, job.id) == job
    assert messages_of(database, job.id) == [f"Created fine-tuning job: {job.id}"]


def test_a_move_under_an_old_epoch_is_refused(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        with pytest.raises(LeaseLost):
            jobs.transition(
                connection, job.id, JobStatus.SUCCEEDED, message="done", epoch=0, result_files=["x"]
            )
        assert jobs.get(connection, project, job.id) == job


def test_a_move_under_the_present_epoch_writes_its_fields(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
        moved = jobs.transition(
            connection,
            job.id,
            JobStatus.SUCCEEDED,
            message="done",
            epoch=1,
            result_files=["file-1"],
        )
    assert (moved.status, moved.result_files) == (JobStatus.SUCCEEDED, ["file-1"])


def test_an_attempt_whose_job_was_cancelled_has_lost_its_lease(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
        jobs.transition(connection, job.id, JobStatus.CANCELLED, message="cancelled")
        with pytest.raises(LeaseLost):
            jobs.transition(connection, job.id, JobStatus.SUCCEEDED, message="done", epoch=1)


def test_a_job_that_is_not_there_cannot_move(database: Database) -> None:
    with database.write() as connection, pytest.raises(NotFound):
        jobs.transition(connection, "ftjob-none", JobStatus.QUEUED, message="moved")


def test_pages_hold_every_job_once_newest_first(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_job(connection, add_project(connection, "other"))
        made = [add_job(connection, project) for _ in range(7)]
        connection.execute(
            update(job_table)
            .where(job_table.c.id.in_([job.id for job in made[1:5]]))
            .values(created_at=made[1].created_at)
        )
    listed: list[Job] = []
    has_more = True
    while has_more:
        with database.read() as connection:
            page = jobs.list_page(
                connection,
                project,
                metadata=None,
                without_metadata=False,
                after=listed[-1].id if listed else None,
                limit=2,
            )
        listed += page.items
        has_more = page.has_more
    moments = [(job.created_at, job.id) for job in listed]
    assert moments == sorted(moments, reverse=True)
    assert {job.id for job in listed} == {job.id for job in made}
    assert len(listed) == len(made)


def test_a_cursor_of_another_project_is_refused(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        foreign = add_job(connection, add_project(connection, "other"))
    with pytest.raises(InvalidInput) as refused:
        list_jobs(database, project, after=foreign.id)
    assert refused.value.param == "after"


@pytest.mark.parametrize("key", ODD_TEXTS)
def test_jobs_are_found_by_any_metadata_key(database: Database, key: str) -> None:
    with database.write() as connection:
        project = add_project(connection)
        wanted = add_job(connection, project, metadata={key: "yes", "more": "x"})
        add_job(connection, project, metadata={key: "no"})
        add_job(connection, project, metadata={"another": "yes"})
        add_job(connection, project)
    assert list_jobs(database, project, metadata={key: "yes"}) == [wanted.id]


@pytest.mark.parametrize(
    "value", [*ODD_TEXTS, "", "true", "null", "1", "1.0", '"quoted"', "x" * 512]
)
def test_jobs_are_found_by_any_metadata_value(database: Database, value: str) -> None:
    with database.write() as connection:
        project = add_project(connection)
        wanted = add_job(connection, project, metadata={"key": value})
        add_job(connection, project, metadata={"key": value + "?"})
        add_job(connection, project)
    assert list_jobs(database, project, metadata={"key": value}) == [wanted.id]


def test_all_pairs_of_a_filter_must_match(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        both = add_job(connection, project, metadata={"a": "1", "b": "2"})
        add_job(connection, project, metadata={"a": "1"})
    assert list_jobs(database, project, metadata={"a": "1", "b": "2"}) == [both.id]


def test_jobs_without_metadata_are_found(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_job(connection, project, metadata={"a": "1"})
        plain = add_job(connection, project)
    assert list_jobs(database, project, without_metadata=True) == [plain.id]


def test_jobs_in_a_status_come_oldest_first(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        first = add_queued_job(connection, project)
        add_job(connection, project)
        second = add_queued_job(connection, project)
        connection.execute(
            update(job_table).where(job_table.c.id == second.id).values(created_at=1.0)
        )
        listed = jobs.list_in(connection, JobStatus.QUEUED, 10)
        assert [job.id for job in listed] == [second.id, first.id]
        assert [job.id for job in jobs.list_in(connection, JobStatus.QUEUED, 1)] == [second.id]
