"""What a database in trouble looks like to those who use it, and that it passes."""

from pathlib import Path

import pytest
from sqlalchemy import text

from app.db.database import Database, open_database
from app.db.migrations import upgrade
from app.db.repositories import keys
from app.domain.errors import DatabaseUnavailable, StorageFull
from tests.support.factories import add_file, add_project


def lose_the_connection(database: Database) -> None:
    with database.write() as connection:
        add_project(connection)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def fill_the_disk(database: Database, project: str) -> None:
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for _ in range(100):
            add_file(connection, project, filename="x" * 1_000)


def test_a_server_that_drops_its_connections_is_unavailable_and_comes_back(
    postgres_url: str,
) -> None:
    database = open_database(postgres_url)
    upgrade(database)
    with pytest.raises(DatabaseUnavailable):
        lose_the_connection(database)
    # Nothing of the transaction is left, and nothing of the broken connection is in the way.
    with database.write() as connection:
        assert keys.list_all(connection) == []
        add_project(connection)
    database.engine.dispose()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    database = open_database("postgresql://127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable), database.read():
        pass
    assert not database.is_reachable()


def test_a_full_disk_is_told_as_such_and_loses_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/test.db")
    upgrade(database)
    with database.write() as connection:
        project = add_project(connection)
        add_file(connection, project, filename="before")
    with pytest.raises(StorageFull):
        fill_the_disk(database, project)
    database.engine.dispose()
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("SELECT filename FROM files").all() == [("before",)]


def test_a_writer_waits_for_another_one(database: Database) -> None:
    """Neither engine answers `locked` to two writers that meet for a moment."""
    with database.write() as connection:
        project = add_project(connection)
        add_file(connection, project)
    with database.read() as reading, database.write() as connection:
        add_file(connection, project)
        assert reading.execute(text("SELECT count(*) FROM files")).scalar() == 1
