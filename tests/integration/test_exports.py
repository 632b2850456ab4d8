"""The rows of exports: who may claim one, and that an attempt which lost it writes nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import export_leases, exports, files
from app.db.repositories.exports import Export, NewExport
from app.db.tables import exports as export_table
from app.domain.errors import DatabaseUnavailable, InvalidTransition, LeaseLost
from app.domain.exports import TRANSITIONS, ExportStatus
from app.queue import EXPORTS
from app.resources import Resources
from app.services.sweeper import Sweeper
from app.storage import open_storage
from tests.support.exports import add_model
from tests.support.factories import add_project
from tests.support.sweeping import received
from worker.export_recorder import ExportRecorder
from worker.lease import Lease

MAX_ATTEMPTS = 2


def add(database: Database, project: str = "default") -> Export:
    with database.write() as connection:
        model = add_model(connection, add_project(connection, project))
        return exports.add(
            connection,
            NewExport(
                project_id=model.project_id,
                model=model.name,
                format="adapter",
                quantization="float32",
                metadata=None,
                job_id=model.job_id,
                base_model=model.base_model,
                storage_prefix=model.storage_prefix,
            ),
        )


def claim(database: Database, ttl_seconds: float = 60) -> Export | None:
    with database.write() as connection:
        return export_leases.claim_next(connection, "me", ttl_seconds)


def look(database: Database, export: Export) -> Export:
    with database.read() as connection:
        return exports.get(connection, export.project_id, export.id)


def test_each_is_claimed_once_and_projects_take_turns(database: Database) -> None:
    first, second, other = add(database), add(database), add(database, "other")
    claimed = [claim(database) for _ in range(4)]
    assert [one and one.id for one in claimed] == [first.id, other.id, second.id, None]
    assert claimed[0] is not None
    assert (claimed[0].lease_epoch, claimed[0].attempts) == (1, 1)


def test_an_attempt_that_lost_its_lease_writes_nothing(database: Database) -> None:
    made = add(database)
    old = claim(database, ttl_seconds=-1)
    assert old is not None
    with database.write() as connection:
        export_leases.lose(connection, old, MAX_ATTEMPTS, "It fell silent")
    new = claim(database)
    assert new is not None
    assert new.lease_epoch == old.lease_epoch + 1
    with pytest.raises(LeaseLost), database.write() as connection:
        exports.transition(
            connection, made.id, ExportStatus.SUCCEEDED, epoch=old.lease_epoch, result_files=["x"]
        )
    with pytest.raises(LeaseLost), database.write() as connection:
        export_leases.renew(connection, made.id, old.lease_epoch, 60)
    assert look(database, made) == new
    with database.write() as connection:
        export_leases.renew(connection, made.id, new.lease_epoch, 60)


class LosesConnections(Database):
    """Its connections are lost in the moment of a commit, which is made."""

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
        raise DatabaseUnavailable()


@pytest.mark.parametrize("is_made", [True, False])
def test_files_are_kept_that_a_row_names_and_no_others(
    database: Database, tmp_path: Path, is_made: bool
) -> None:
    """An attempt that does not know whether its last write was made finds its lease gone."""
    add(database)
    export = claim(database)
    assert export is not None
    storage = open_storage(f"file://{tmp_path}/storage")
    (tmp_path / "adapter.tar").write_bytes(b"weights")
    if not is_made:
        with database.write() as connection:
            exports.transition(connection, export.id, ExportStatus.CANCELLED)
    lease = Lease(
        database,
        export.id,
        export.lease_epoch,
        ttl_seconds=60,
        claimed_at=time.monotonic(),
        deadline_file=None,
        renew=export_leases.renew,
    )
    recorder = ExportRecorder(
        LosesConnections(database.engine), storage, export, lease, MAX_ATTEMPTS
    )
    try:
        with pytest.raises(LeaseLost):
            recorder.finished({"files": [str(tmp_path / "adapter.tar")], "verification": {}})
    finally:
        lease.close()
    ended = look(database, export)
    assert len(storage.list("files")) == is_made
    for file_id in ended.result_files or ():
        with database.read() as connection:
            file = files.get(connection, export.project_id, file_id)
        with storage.open(file.storage_key) as stream:
            assert stream.read() == b"weights"


def test_cancelling_ends_the_lease(database: Database) -> None:
    made = add(database)
    held = claim(database)
    assert held is not None
    with database.write() as connection:
        exports.transition(connection, made.id, ExportStatus.CANCELLED)
    with pytest.raises(LeaseLost), database.write() as connection:
        export_leases.renew(connection, made.id, held.lease_epoch, 60)


@pytest.mark.parametrize("status", list(ExportStatus))
def test_only_the_table_of_moves_is_followed(database: Database, status: ExportStatus) -> None:
    for target in ExportStatus:
        made = add(database)
        with database.write() as connection:
            connection.execute(
                update(export_table).where(export_table.c.id == made.id).values(status=status)
            )
        if target in TRANSITIONS[status]:
            with database.write() as connection:
                exports.transition(connection, made.id, target)
            assert look(database, made).status is target
        else:
            with pytest.raises(InvalidTransition), database.write() as connection:
                exports.transition(connection, made.id, target)
            assert look(database, made).status is status


def test_one_that_loses_every_worker_fails(resources: Resources, sweeper: Sweeper) -> None:
    made = add(resources.database)
    for attempt in (1, 2):
        assert claim(resources.database, ttl_seconds=-1) is not None, attempt
        sweeper.sweep()
    ended = look(resources.database, made)
    assert ended.status is ExportStatus.FAILED
    assert ended.error is not None
    assert ended.error["code"] == "worker_lost"
    assert "2 times" in ended.error["message"]


def test_a_message_is_sent_once_and_again_if_it_led_to_nothing(
    resources: Resources, sweeper: Sweeper
) -> None:
    made = add(resources.database)
    for _ in range(2):
        sweeper.sweep()
    assert received(resources, EXPORTS) == [made.id]
    with resources.database.write() as connection:
        connection.execute(update(export_table).values(dispatched_at=now() - 61))
    sweeper.sweep()
    assert received(resources, EXPORTS) == [made.id]
