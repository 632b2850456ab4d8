import pytest

from app.db.database import Database
from app.db.repositories import adapters
from app.domain.errors import NotFound
from tests.support.factories import add_adapter, add_job, add_project


def test_an_adapter_is_found_in_its_own_project_only(database: Database) -> None:
    with database.write() as connection:
        mine, other = add_project(connection), add_project(connection, "other")
        add_adapter(connection, mine, "ft:base:acme:a/b:1")
        found = adapters.find(connection, mine, "ft:base:acme:a/b:1")
        assert found is not None
        assert (found.name, found.project_id, found.is_final) == ("ft:base:acme:a/b:1", mine, True)
        assert adapters.find(connection, other, "ft:base:acme:a/b:1") is None


def test_the_list_of_models_leaves_checkpoints_and_others_out(database: Database) -> None:
    with database.write() as connection:
        mine, other = add_project(connection), add_project(connection, "other")
        add_adapter(connection, mine, "ft:1")
        add_adapter(connection, mine, "ft:1:ckpt-step-1", is_final=False)
        add_adapter(connection, mine, "ft:2")
        add_adapter(connection, other, "ft:3")
        listed = [one.name for one in adapters.list_final(connection, mine)]
    assert listed == ["ft:1", "ft:2"]


def test_an_adapter_is_removed_once_and_by_its_project(database: Database) -> None:
    with database.write() as connection:
        mine, other = add_project(connection), add_project(connection, "other")
        add_adapter(connection, mine, "ft:1")
        with pytest.raises(NotFound):
            adapters.remove(connection, other, "ft:1")
        adapters.remove(connection, mine, "ft:1")
        with pytest.raises(NotFound):
            adapters.remove(connection, mine, "ft:1")


def test_checkpoints_come_newest_first_in_pages(database: Database) -> None:
    with database.write() as connection:
        job = add_job(connection, add_project(connection))
        for step in (10, 2, 30):
            adapters.add_checkpoint(
                connection, job_id=job.id, step=step, model=f"m:{step}", metrics={"step": step}
            )
        first = adapters.list_checkpoints(connection, job.id, after=None, limit=2)
        rest = adapters.list_checkpoints(connection, job.id, after=first.items[-1].id, limit=2)
        assert adapters.has_checkpoint(connection, job.id, 2)
        assert not adapters.has_checkpoint(connection, job.id, 3)
    assert [one.step for one in first.items] == [30, 10]
    assert [one.step for one in rest.items] == [2]
    assert (first.has_more, rest.has_more) == (True, False)
    assert rest.items[0].metrics == {"step": 2}
