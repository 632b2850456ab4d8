from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Connection, update

from app.db.database import Database
from app.db.repositories import files as rows
from app.db.repositories import sweeps
from app.db.repositories.files import File
from app.db.repositories.pages import Order
from app.db.repositories.sweeps import NewSweep, Sweep
from app.db.tables import files as file_table
from app.domain.errors import FileInUse, InvalidInput, NotFound
from app.domain.job_spec import AdapterRef, FileRef
from app.domain.job_state import JobStatus
from app.domain.sweeps import SweepStatus
from app.services import files
from tests.support.factories import add_file, add_job_in, add_project, add_queued_job


def list_all(
    database: Database, project_id: str, *, limit: int, order: Order, purpose: str | None = None
) -> list[File]:
    """Return every file, page by page."""
    found: list[File] = []
    while True:
        with database.read() as connection:
            page = rows.list_page(
                connection,
                project_id,
                purpose=purpose,
                after=found[-1].id if found else None,
                limit=limit,
                order=order,
            )
        found += page.items
        assert len(page.items) == limit or not page.has_more
        if not page.has_more:
            return found


def test_a_file_is_found_in_its_own_project_only(database: Database) -> None:
    with database.write() as connection:
        mine, other = add_project(connection), add_project(connection, "other")
        file = add_file(connection, mine, filename='na"me.jsonl', bytes=2**40)
    with database.read() as connection:
        assert rows.get(connection, mine, file.id) == file
        with pytest.raises(NotFound) as foreign:
            rows.get(connection, other, file.id)
        with pytest.raises(NotFound) as absent:
            rows.get(connection, mine, "file-none")
    assert foreign.value.message.replace(file.id, "file-none") == absent.value.message


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_pages_hold_every_file_once_in_order(database: Database, order: Order, limit: int) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_file(connection, add_project(connection, "other"))
        made = [add_file(connection, project) for _ in range(7)]
        # Several of one moment, as a quick client makes them.
        same = [one.id for one in made[2:6]]
        connection.execute(
            update(file_table)
            .where(file_table.c.id.in_(same))
            .values(created_at=made[2].created_at)
        )
    listed = list_all(database, project, limit=limit, order=order)
    assert {one.id for one in listed} == {one.id for one in made}
    moments = [(one.created_at, one.id) for one in listed]
    for before, after in pairwise(moments if order == "asc" else moments[::-1]):
        assert before < after


def test_a_page_may_be_of_one_purpose(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_file(connection, project)
        result = add_file(connection, project, purpose="fine-tune-results")
    found = list_all(database, project, limit=1, order="desc", purpose="fine-tune-results")
    assert [one.id for one in found] == [result.id]


@pytest.mark.parametrize("whose", ["foreign", "absent"])
def test_a_cursor_that_is_not_in_the_list_is_refused(database: Database, whose: str) -> None:
    with database.write() as connection:
        project = add_project(connection)
        foreign = add_file(connection, add_project(connection, "other")).id
    cursor = foreign if whose == "foreign" else "file-none"
    with database.read() as connection, pytest.raises(InvalidInput) as refused:
        rows.list_page(connection, project, purpose=None, after=cursor, limit=1, order="asc")
    assert refused.value.param == "after"


@pytest.mark.parametrize("status", JobStatus)
def test_a_file_in_use_is_kept(database: Database, status: JobStatus) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_job_in(connection, project, status)
        file = add_file(connection, project, id=job.training_file)
    has_ended = status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
    with database.write() as connection:
        if has_ended:
            assert files.remove(connection, project, file.id) == file
            return
        with pytest.raises(FileInUse, match=file.id):
            files.remove(connection, project, file.id)


def test_a_validation_file_in_use_is_kept(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file = add_file(connection, project)
        add_queued_job(connection, project, validation_file=file.id)
        with pytest.raises(FileInUse):
            files.remove(connection, project, file.id)


def test_an_expired_file_is_gone_before_it_is_deleted(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file = add_file(connection, project, expires_after_seconds=3_600)
        assert file.expires_at == pytest.approx(file.created_at + 3_600, abs=5)
        assert rows.list_expired(connection, 10) == []
        connection.execute(update(file_table).values(expires_at=file.created_at - 1))
        with pytest.raises(NotFound):
            rows.get(connection, project, file.id)
        assert [one.id for one in rows.list_expired(connection, 10)] == [file.id]
    assert list_all(database, project, limit=10, order="asc") == []


def test_an_expired_file_that_a_job_still_reads_is_not_deleted(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file = add_file(connection, project, expires_after_seconds=3_600)
        add_queued_job(connection, project, training_file=file.id)
        connection.execute(update(file_table).values(expires_at=1.0))
        assert rows.list_expired(connection, 10) == []


def test_an_adapter_that_a_job_starts_from_is_kept(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file, other = (add_file(connection, project, purpose="adapter") for _ in range(2))
        start = AdapterRef(file=FileRef(file.id, file.storage_key, file.sha256))
        add_queued_job(connection, project, start_from=asdict(start))
        with pytest.raises(FileInUse):
            files.remove(connection, project, file.id)
        assert files.remove(connection, project, other.id) == other


def test_an_adapter_that_a_sweeps_next_job_starts_from_is_kept(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        file = add_file(connection, project, purpose="adapter")
        sweep = add_sweep(connection, project, {"start_file": file.id})
        with pytest.raises(FileInUse):
            files.remove(connection, project, file.id)
        sweeps.finish(connection, sweep.id, SweepStatus.CANCELLED)
        assert files.remove(connection, project, file.id) == file


def add_sweep(connection: Connection, project_id: str, request: dict[str, Any]) -> Sweep:
    return sweeps.add(
        connection,
        NewSweep(
            project_id=project_id,
            job={},
            request={"training_file": "file-a", "validation_file": None, "training": {}} | request,
            parameters={},
            metric="loss",
            algorithm="random",
            pruner="none",
            max_trials=1,
            max_parallel=1,
            budget=None,
            seed=1,
            suffix=None,
            metadata=None,
        ),
    )
