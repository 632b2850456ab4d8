"""Aliases under concurrency, on each engine."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from app.db.database import Database
from app.db.repositories import adapters, keys
from app.db.repositories import aliases as rows
from app.db.repositories.keys import Principal
from app.domain.aliases import Target
from app.domain.errors import Conflict, DomainError, ModelInUse, NotFound
from app.domain.ids import new_id
from app.domain.task_routes import CHAT
from app.inference import Caller
from app.resources import Resources
from app.services import aliases, calls, inference, models
from app.services.aliases import Change
from app.settings import load_settings
from tests.support.factories import BASE_MODEL, add_adapter, add_alias, add_project
from tests.support.fake_engine import DELETED_MEANWHILE, running_fake_engine


@pytest.fixture
def principal(database: Database) -> Principal:
    with database.write() as connection:
        project = add_project(connection)
    with database.read() as connection:
        return keys.principal_of(connection, project)


@pytest.fixture
def resources(database: Database, tmp_path: Path) -> Iterator[list[Resources]]:
    """What two API processes hold."""
    settings = load_settings({"TUNESMITH_DATA_DIR": str(tmp_path)})
    url = database.engine.url.render_as_string(hide_password=False)
    two = [Resources(replace(settings, database_url=url)) for _ in range(2)]
    yield two
    for one in two:
        one.database.engine.dispose()


def at(model: str, expected_revision: int | None = None) -> Change:
    return Change([Target(model, 1)], None, None, None, expected_revision)


def together(*steps: Callable[[], object]) -> None:
    """Take steps at the same moment, each on a thread; refusals are fine."""
    barrier = threading.Barrier(len(steps))

    def take(step: Callable[[], object]) -> None:
        barrier.wait()
        with suppress(DomainError):
            step()

    with ThreadPoolExecutor(max_workers=len(steps)) as pool:
        list(pool.map(take, steps))


def test_an_alias_never_points_at_what_is_gone(
    resources: list[Resources], principal: Principal
) -> None:
    one, other = resources
    project = principal.project_id
    for _ in range(15):
        model = f"ft:{BASE_MODEL}:acme::{new_id('')}"
        with one.database.write() as connection:
            add_adapter(connection, project, model)
            alias = add_alias(connection, project, [BASE_MODEL])

        def point(name: str = alias.name, model: str = model) -> None:
            with one.database.write() as connection:
                aliases.point(connection, one.catalogue, principal, name, at(model))

        def remove(model: str = model) -> None:
            with other.database.write() as connection:
                models.remove(connection, other.catalogue, project, model)

        together(point, remove)
        with one.database.read() as connection:
            is_needed = model in rows.get(connection, project, alias.name).revision.models
            is_there = adapters.find(connection, project, model) is not None
        assert is_there == is_needed


def test_of_two_changes_that_expect_the_same_one_is_made(
    resources: list[Resources], principal: Principal
) -> None:
    one, other = resources
    with one.database.write() as connection:
        alias = add_alias(connection, principal.project_id, [BASE_MODEL])

    def change(process: Resources) -> None:
        with process.database.write() as connection:
            aliases.point(connection, process.catalogue, principal, alias.name, at(BASE_MODEL, 1))

    together(*(lambda process=process: change(process) for process in (one, other) * 3))
    with one.database.read() as connection:
        page = rows.list_revisions(connection, alias, after=None, limit=10)
    assert [revision.number for revision in page.items] == [2, 1]
    with pytest.raises(Conflict):
        change(one)


def test_a_change_is_seen_at_once_by_another_process(
    resources: list[Resources], principal: Principal
) -> None:
    one, other = resources
    caller = Caller(principal.project_id)
    body = {"model": "support-bot", "messages": []}
    with one.database.write() as connection:
        aliases.create(connection, one.catalogue, principal, "support-bot", at(BASE_MODEL))
    assert calls.find(other, caller, CHAT, body).version.revision == 1
    for revision in range(2, 6):
        with one.database.write() as connection:
            aliases.point(connection, one.catalogue, principal, "support-bot", at(BASE_MODEL))
        found = calls.find(other, caller, CHAT, body)
        assert (found.version.revision, found.body["model"]) == (revision, BASE_MODEL)
    with one.database.write() as connection:
        aliases.remove(connection, principal.project_id, "support-bot")
    with pytest.raises(NotFound):
        calls.find(other, caller, CHAT, body)


@asynccontextmanager
async def deleted_while_it_is_loaded(
    process: Resources, principal: Principal, model: str
) -> AsyncIterator[dict[str, object]]:
    """Yield a request to an alias of a model, which the alias leaves, and which is then deleted."""
    with process.database.write() as connection:
        adapter = add_adapter(connection, principal.project_id, model)
        alias = add_alias(connection, principal.project_id, [model])
    scratch = process.storage.scratch()
    (scratch / "adapter_config.json").write_text("{}")
    process.storage.publish(adapter.storage_prefix, scratch)

    def delete() -> None:
        with process.database.write() as connection:
            aliases.point(connection, process.catalogue, principal, alias.name, at(BASE_MODEL))
            models.remove(connection, process.catalogue, principal.project_id, model)
        process.storage.delete(adapter.storage_prefix)

    async def delete_and_forget() -> None:
        await asyncio.sleep(0.2)
        await asyncio.to_thread(delete)
        await process.engine.forget(model)

    deleting = asyncio.create_task(delete_and_forget())
    yield {"model": alias.name, "messages": [{"role": "user", "content": "hello"}]}
    await deleting
    await process.engine.close()


def test_what_an_alias_left_for_is_asked_when_its_version_is_deleted(
    resources: list[Resources], principal: Principal
) -> None:
    """Under the request, when it was found and an engine reads it."""

    async def ask(process: Resources) -> None:
        caller, model = Caller(principal.project_id), f"{DELETED_MEANWHILE}:acme::1"
        async with deleted_while_it_is_loaded(process, principal, model) as body:
            own = asyncio.create_task(
                inference.complete(process, caller, CHAT, body | {"model": model})
            )
            stream = asyncio.create_task(inference.stream(process, caller, CHAT, body))
            answer = await inference.complete(process, caller, CHAT, body)
            assert answer["model"] == BASE_MODEL
            await (await stream).aclose()
            with pytest.raises(NotFound, match="does not exist"):
                await own

    with running_fake_engine() as engine:
        settings = replace(resources[0].settings, engine_url=engine.url)
        process = Resources(settings)
        asyncio.run(ask(process))
        process.database.engine.dispose()
        assert len(engine.loads) == 3


def test_a_base_model_that_comes_later_does_not_take_the_requests(
    resources: list[Resources], principal: Principal
) -> None:
    """Nor does it change what another project means by the name."""
    one = resources[0]
    model = f"ft:{BASE_MODEL}:acme::{new_id('')}"
    with one.database.write() as connection:
        adapter = add_adapter(connection, principal.project_id, model)
        add_alias(connection, principal.project_id, [model], name=BASE_MODEL)
        other = add_project(connection, "other")
    scratch = one.storage.scratch()
    (scratch / "adapter_config.json").write_text("{}")
    one.storage.publish(adapter.storage_prefix, scratch)
    body = {"model": BASE_MODEL, "messages": []}
    assert calls.find(one, Caller(principal.project_id), CHAT, body).version.model == model
    assert calls.find(one, Caller(other), CHAT, body).version.model == BASE_MODEL


def test_a_model_of_another_project_is_not_kept_by_an_alias(
    database: Database, principal: Principal
) -> None:
    """Two projects cannot own one name; the look is scoped all the same."""
    with database.write() as connection:
        other = add_project(connection, "other")
        add_alias(connection, other, ["ft:x"])
        aliases.keep_needed(connection, principal.project_id, ["ft:x"])
        with pytest.raises(ModelInUse):
            aliases.keep_needed(connection, other, ["ft:x"])
