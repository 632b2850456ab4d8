import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select

from app.db.database import Database, open_database
from app.db.migrations import alembic_config, downgrade, is_current, upgrade
from app.db.repositories import batches, jobs, locks
from app.db.repositories.batches import NewBatch
from app.db.tables import jobs as job_table
from app.db.tables import metadata
from app.domain.job_state import JobStatus
from app.services.sweeper import LOCK
from tests.support.factories import add_file, add_job_in, add_project, add_running_job
from tests.support.service import REPOSITORY, environment_of

RESOLVED = '{"adapter": {"type": "lora", "options": {"r": 4}}, "method": "supervised"}'


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found: list[object] = compare_metadata(context, metadata)
    return found


def test_the_scripts_make_exactly_the_tables(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.read() as connection:
        assert table_names(connection) == set(metadata.tables)
    assert differences(empty_database) == []


def test_a_table_that_no_script_makes_would_be_seen(empty_database: Database) -> None:
    """The negative control of the test above."""
    upgrade(empty_database)
    with empty_database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN forgotten INTEGER")
    assert differences(empty_database) != []


def test_up_down_and_up_again_with_rows_there(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        project = add_project(connection)
        add_file(connection, project)
        add_running_job(connection, project, metadata={"a": "b"})
    downgrade(empty_database, "base")
    with empty_database.read() as connection:
        assert table_names(connection) == set()
    upgrade(empty_database)
    assert differences(empty_database) == []
    with empty_database.read() as connection:
        assert connection.execute(select(job_table)).all() == []


def test_rows_survive_every_step_down_to_the_first_and_up_again(
    empty_database: Database,
) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project, metadata={"a": "b"})
    revisions = [
        one.revision for one in ScriptDirectory.from_config(alembic_config()).walk_revisions()
    ]
    for revision in revisions[1:]:
        downgrade(empty_database, revision)
    for revision in reversed(revisions[:-1]):
        upgrade(empty_database, revision)
    with empty_database.read() as connection:
        assert jobs.get(connection, project, job.id) == job


def test_upgrading_twice_changes_nothing(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        project = add_project(connection)
    upgrade(empty_database)
    with empty_database.write() as connection:
        assert add_project(connection) == project


def test_processes_that_start_together_upgrade_once(database_url: str) -> None:
    databases = [open_database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(upgrade, databases))
    assert differences(databases[0]) == []
    for database in databases:
        database.engine.dispose()


def test_a_paused_job_goes_on_where_nobody_can_resume_it(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        project = add_project(connection)
        validated = add_job_in(connection, project, JobStatus.PAUSED)
        unvalidated = add_job_in(connection, project, JobStatus.PAUSED)
        connection.execute(
            job_table.update().where(job_table.c.id == validated.id).values(spec=RESOLVED)
        )
    downgrade(empty_database, "0001")
    upgrade(empty_database)
    with empty_database.read() as connection:
        assert jobs.get(connection, project, validated.id).status is JobStatus.QUEUED
        after = jobs.get(connection, project, unvalidated.id)
    assert after.status is JobStatus.VALIDATING_FILES


def test_files_of_batches_go_with_them(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        project = add_project(connection)
        kept = add_file(connection, project)
        requests = add_file(connection, project, purpose="batch")
        add_file(connection, project, purpose="batch_output")
        new = NewBatch(project, "/v1/chat/completions", "24h", requests.id, None, None)
        batches.add(connection, new)
    downgrade(empty_database, "0006")
    with empty_database.read() as connection:
        assert "batches" not in table_names(connection)
        assert connection.exec_driver_sql("SELECT id FROM files").scalars().all() == [kept.id]
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_the_newest_adapters_are_found_by_an_index(empty_database: Database) -> None:
    def indexed_columns() -> list[list[str | None]]:
        with empty_database.read() as connection:
            return [one["column_names"] for one in inspect(connection).get_indexes("adapters")]

    upgrade(empty_database)
    assert ["created_at"] in indexed_columns()
    downgrade(empty_database, "0009")
    assert ["created_at"] not in indexed_columns()
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_a_database_that_is_behind_is_not_current(empty_database: Database) -> None:
    assert not is_current(empty_database)
    upgrade(empty_database)
    assert is_current(empty_database)
    downgrade(empty_database, "0001")
    assert not is_current(empty_database)


def test_the_tables_of_a_running_service_are_not_taken_away(
    empty_database: Database, tmp_path: Path
) -> None:
    upgrade(empty_database)
    with empty_database.write() as connection:
        locks.acquire(connection, LOCK, "a sweeper", 60)
    url = empty_database.engine.url.render_as_string(hide_password=False)
    environment = environment_of(tmp_path, {"DATABASE_URL": url})
    command = [sys.executable, "-m", "app", "migrate", "--down", "0001"]

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )

    refused = run()
    assert refused.returncode == 1
    assert "the service is running" in refused.stderr
    assert is_current(empty_database)
    with empty_database.write() as connection:
        locks.acquire(connection, LOCK, "a sweeper", -1)
    assert run().returncode == 0
    assert not is_current(empty_database)
