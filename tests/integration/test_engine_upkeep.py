"""What engines are told when nobody asks: of new models, pinned ones and those that are gone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.db.migrations import upgrade
from app.db.repositories import adapters
from app.db.repositories.adapters import Adapter
from app.resources import Resources
from app.services.engine_upkeep import EngineUpkeep
from app.settings import Settings, load_settings
from tests.support.factories import BASE_MODEL, add_adapter, add_project
from tests.support.fake_engine import FakeEngine, running_fake_engine

Work = Callable[[EngineUpkeep], Awaitable[None]]


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    with (
        running_fake_engine(has_idempotent_loads=True) as one,
        running_fake_engine(has_idempotent_loads=True) as other,
    ):
        yield [one, other]


@pytest.fixture
def settings(tmp_path: Path, engines: list[FakeEngine]) -> Settings:
    urls = ",".join(engine.url for engine in engines)
    return load_settings({"TUNESMITH_DATA_DIR": str(tmp_path), "ENGINE_URL": urls})


@pytest.fixture
def resources(settings: Settings) -> Iterator[Resources]:
    """An installation whose rows a test changes while the upkeep has another's eyes on them."""
    resources = Resources(settings)
    upgrade(resources.database)
    yield resources
    resources.database.engine.dispose()


@pytest.fixture
def project(resources: Resources) -> str:
    with resources.database.write() as connection:
        return add_project(connection)


def added(resources: Resources, project: str, suffix: str) -> Adapter:
    with resources.database.write() as connection:
        adapter = add_adapter(connection, project, f"ft:{BASE_MODEL}:acme:{suffix}:1")
    scratch = resources.storage.scratch()
    (scratch / "adapter_config.json").write_text("{}")
    resources.storage.publish(adapter.storage_prefix, scratch)
    return adapter


def keeping_up(settings: Settings, work: Work, **options: float) -> None:
    async def run() -> None:
        own = Resources(settings)
        try:
            await work(EngineUpkeep(own, **options))
        finally:
            await own.engine.close()
            own.database.engine.dispose()

    asyncio.run(run())


def loads(engines: list[FakeEngine]) -> list[str]:
    return [name for engine in engines for name, _ in engine.loads]


def test_new_models_are_read_by_the_engine_that_will_be_asked(
    settings: Settings, resources: Resources, project: str, engines: list[FakeEngine]
) -> None:
    added(resources, project, "old")

    async def work(upkeep: EngineUpkeep) -> None:
        await upkeep.prefetch_new()
        assert loads(engines) == []
        new = added(resources, project, "new")
        await upkeep.prefetch_new()
        await upkeep.prefetch_new()
        assert loads(engines) == [new.name]

    keeping_up(settings, work)


def test_an_engine_that_hangs_keeps_nobody_from_being_told(
    settings: Settings, resources: Resources, project: str, engines: list[FakeEngine]
) -> None:
    added(resources, project, "old")

    async def work(upkeep: EngineUpkeep) -> None:
        await upkeep.prefetch_new()
        made = [added(resources, project, suffix) for suffix in ("one", "unreadable", "other")]
        await asyncio.wait_for(upkeep.prefetch_new(), 15)
        assert set(loads(engines)) == {one.name for one in made}

    keeping_up(settings, work, read_within_seconds=0.5)


def test_pinned_models_are_read(
    settings: Settings, resources: Resources, project: str, engines: list[FakeEngine]
) -> None:
    pinned = added(resources, project, "pinned")
    added(resources, project, "other")

    async def work(upkeep: EngineUpkeep) -> None:
        await upkeep.prefetch_pinned()

    keeping_up(replace(settings, pinned_adapters=(pinned.name, "ft:nowhere")), work)
    assert loads(engines) == [pinned.name]


def test_engines_forget_what_is_gone_and_nothing_else(
    settings: Settings, resources: Resources, project: str, engines: list[FakeEngine]
) -> None:
    kept, gone = (added(resources, project, suffix) for suffix in ("kept", "gone"))
    for engine in engines:
        for name in (kept.name, gone.name, "lora-of-the-operator"):
            engine.hold(name)

    async def work(upkeep: EngineUpkeep) -> None:
        await upkeep.forget_deleted()
        assert all(gone.name in engine.loaded for engine in engines)
        # Past the API, as when it ended before it could tell the engines.
        with resources.database.write() as connection:
            adapters.remove(connection, project, gone.name)
        await upkeep.forget_deleted()

    keeping_up(settings, work)
    for engine in engines:
        assert engine.loaded == {kept.name, "lora-of-the-operator"}
