"""Adapters move between storage, memory and slots, and nobody who asks notices."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from app.domain.job_spec import LoraSpec
from tests.serving.conftest import RunScenario
from worker.serving.digests import Digests
from worker.serving.engine import Engine
from worker.serving.settings import load_engine_settings
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.lora import LoraAdapter, LoraPair, new_adapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

LOAD = "/v1/load_lora_adapter"
COMPLETE = "/v1/completions"
PROMPT = [504, 3575, 282]

Library = Callable[[int], list[str]]


@pytest.fixture
def library(trunk: Trunk, installed_base: InstalledBaseModel, adapter_root: Path) -> Library:
    """Write small adapters, each of which changes answers in its own way; return their names."""

    def write(count: int) -> list[str]:
        names = [f"small-{number}" for number in range(count)]
        for seed, name in enumerate(names):
            (adapter_root / name).mkdir()
            save_adapter(adapter_root / name, small(trunk, seed), installed_base.name)
        return names

    return write


def small(trunk: Trunk, seed: int) -> LoraAdapter:
    adapter = new_adapter(trunk.model, LoraSpec(r=1, alpha=1, target_modules=("o_proj",)), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: LoraPair(pair.a, torch.randn(pair.b.shape, generator=generator) * 0.3)
        for path, pair in adapter.weights.items()
    }
    return replace(adapter, weights=weights)


def alone(trunk: Trunk, count: int) -> list[float]:
    """Return the log-probability of each adapter's likeliest next token, without an engine."""
    found: list[float] = []
    for start in range(0, count, 25):
        seeds = range(start, min(count, start + 25))
        for seed in seeds:
            trunk.attach(f"alone-{seed}", small(trunk, seed))
        rows = [SequenceRows(PROMPT, f"alone-{seed}") for seed in seeds]
        with torch.inference_mode():
            hidden = trunk.hidden(pack(rows, trunk.device))[len(PROMPT) - 1 :: len(PROMPT)]
            found += trunk.logits(hidden).log_softmax(-1).max(dim=-1).values.tolist()
        for seed in seeds:
            trunk.detach(f"alone-{seed}")
    return found


async def load(client: httpx.AsyncClient, *names: str, **more: Any) -> None:
    for name in names:
        response = await client.post(LOAD, json={"lora_name": name, "lora_path": name, **more})
        assert response.status_code == 200, response.text


async def ask(client: httpx.AsyncClient, name: str, **more: Any) -> float:
    """Return the log-probability of the likeliest next token."""
    body = {"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 1, "logprobs": 1}
    response = await client.post(COMPLETE, json=body | more)
    assert response.status_code == 200, response.text
    found: float = response.json()["choices"][0]["logprobs"]["token_logprobs"][0]
    return found


async def begin(
    client: httpx.AsyncClient, engine: Engine, name: str, max_tokens: int
) -> "asyncio.Task[float]":
    """Return an answer that is being written."""
    answer = asyncio.create_task(ask(client, name, max_tokens=max_tokens))
    while engine.stats()["running"] < 1:
        await asyncio.sleep(0.01)
    return answer


def test_an_evicted_adapter_comes_back_by_itself(
    with_engine: RunScenario, trunk: Trunk, library: Library
) -> None:
    names, expected = library(5), alone(trunk, 5)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, *names)
        stats = engine.stats()
        assert stats["adapters"] == names[2:]
        assert (stats["adapters_known"], stats["adapters_in_slots"]) == (5, 2)
        assert stats["bases"]["smollm2-135m"]["attached"] == 2
        for _ in range(2):
            assert [await ask(client, name) for name in names] == pytest.approx(expected, abs=1e-4)
        assert engine.stats()["adapters"] == names[2:]
        listed = (await client.get("/v1/models")).json()["data"]
        assert {one["id"] for one in listed} == {"smollm2-135m", *names}
        assert {one["parent"] for one in listed} == {None, "smollm2-135m"}

    with_engine(scenario, adapter_slots=2, max_adapters=3)


def test_more_adapters_than_slots_can_be_asked_at_once(
    with_engine: RunScenario, trunk: Trunk, library: Library
) -> None:
    names, expected = library(6), alone(trunk, 6)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, *names)
        found = await asyncio.gather(*(ask(client, name, max_tokens=3) for name in names))
        assert found == pytest.approx(expected, abs=1e-4)
        assert engine.stats()["bases"]["smollm2-135m"]["attached"] == 2

    with_engine(scenario, adapter_slots=2)


def test_memory_is_bounded_in_bytes(with_engine: RunScenario, library: Library) -> None:
    names = library(3)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, names[0])
        size = engine.stats()["adapter_bytes"]
        assert 100_000 < size < 200_000
        await load(client, *names[1:])
        assert engine.stats()["adapters"] == names[1:]
        assert engine.stats()["adapter_bytes"] == 2 * size
        engine.unload_adapter(names[1])
        assert engine.stats()["adapter_bytes"] == size

    with_engine(scenario, max_adapter_bytes=400_000)


def test_what_is_pinned_stays(with_engine: RunScenario, library: Library) -> None:
    names = library(4)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, *names)
        assert engine.stats()["adapters"] == [names[0], names[3]]

    with_engine(
        scenario, adapter_slots=2, max_adapters=2, pinned_adapters=frozenset({names[0], "other"})
    )


def test_pins_that_leave_no_place_are_refused() -> None:
    variables = {"ENGINE_PINNED_ADAPTERS": "ft:a, ft:b", "ADAPTER_ROOT": "/", "STORAGE_URL": ""}
    assert load_engine_settings(variables).pinned_adapters == {"ft:a", "ft:b"}
    with pytest.raises(InvalidInput, match="ENGINE_PINNED_ADAPTERS"):
        load_engine_settings(variables | {"ENGINE_ADAPTER_SLOTS": "2"})


def test_an_evicted_adapter_whose_files_are_gone_is_gone(
    with_engine: RunScenario, library: Library, adapter_root: Path
) -> None:
    names = library(2)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, *names)
        shutil.rmtree(adapter_root / names[0])
        response = await client.post(COMPLETE, json={"model": names[0], "prompt": PROMPT})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert [model.name for model in engine.models()] == ["smollm2-135m", names[1]]

    with_engine(scenario, adapter_slots=1, max_adapters=1)


def test_one_that_is_gone_is_told_at_once_and_takes_no_slot(
    with_engine: RunScenario, library: Library, adapter_root: Path
) -> None:
    names = library(2)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, names[1])
        await load(client, names[0])
        busy = await begin(client, engine, names[0], max_tokens=100)
        shutil.rmtree(adapter_root / names[1])

        response = await client.post(COMPLETE, json={"model": names[1], "prompt": PROMPT})

        assert response.status_code == 404
        assert not busy.done()
        await busy
        assert engine.stats()["adapters_in_slots"] == 1

    with_engine(scenario, adapter_slots=1, max_adapters=1)


def test_where_every_adapter_in_memory_is_in_use_another_is_refused(
    with_engine: RunScenario, library: Library
) -> None:
    names = library(2)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, names[0])
        busy = await begin(client, engine, names[0], max_tokens=12)
        body = {"lora_name": names[1], "lora_path": names[1]}
        assert (await client.post(LOAD, json=body)).status_code == 503
        await busy
        await load(client, names[1])

    with_engine(scenario, max_adapters=1)


def test_who_waits_for_a_slot_holds_up_nobody_who_is_read(
    with_engine: RunScenario, library: Library
) -> None:
    names = library(3)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await load(client, names[0])
        busy = await begin(client, engine, names[0], max_tokens=100)
        waiting = []
        for name in names[1:]:
            # The first one is read, and then waits for the only slot: so can the second.
            waiting.append(asyncio.create_task(load(client, name)))
            while name not in engine.stats()["adapters"] and not busy.done():
                await asyncio.sleep(0.05)
        assert not busy.done()
        await asyncio.gather(busy, *waiting)

    with_engine(scenario, adapter_slots=1)


def test_an_adapter_is_read_before_anybody_asks_if_its_base_model_is_there(
    with_engine: RunScenario,
) -> None:
    red = {"lora_name": "red", "lora_path": "red/adapter"}

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        # Nobody has asked for the base model yet.
        assert (await client.post(LOAD, json=red | {"prefetch": True})).status_code == 200
        assert engine.models() == []
        await engine.preload("smollm2-135m")
        assert (await client.post(LOAD, json=red | {"prefetch": True})).status_code == 200
        stats = engine.stats()
        assert (stats["adapters"], stats["adapters_in_slots"]) == (["red"], 0)
        await ask(client, "red")
        assert engine.stats()["adapters_in_slots"] == 1

    with_engine(scenario)


def test_a_file_is_read_for_its_digest_once_as_long_as_nothing_writes_to_it(
    tmp_path: Path,
) -> None:
    path, digests = tmp_path / "weights", Digests()
    with path.open("wb") as file:
        file.truncate(64 << 20)
    process, bytes_read = psutil.Process(), []
    for _ in range(2):
        before = process.io_counters().read_chars
        first = digests.sha256(path)
        bytes_read.append(process.io_counters().read_chars - before)
    assert bytes_read[0] >= 64 << 20
    assert bytes_read[1] < 1 << 20

    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"changed")
    # As whoever restores a file does.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.sha256(path) != first


@pytest.mark.slow
def test_two_hundred_adapters_through_eight_slots(
    with_engine: RunScenario, trunk: Trunk, library: Library
) -> None:
    names, expected = library(200), alone(trunk, 200)
    process = psutil.Process()

    async def in_turn(client: httpx.AsyncClient, asked: Sequence[str]) -> list[float]:
        places = asyncio.Semaphore(16)

        async def one(name: str) -> float:
            async with places:
                return await ask(client, name)

        return list(await asyncio.gather(*(one(name) for name in asked)))

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await engine.preload("smollm2-135m")
        before = process.memory_info().rss
        await load(client, *names)
        assert await in_turn(client, names) == pytest.approx(expected, abs=1e-4)
        # Those that were asked first had to make room long ago.
        assert await in_turn(client, names[:40]) == pytest.approx(expected[:40], abs=1e-4)
        stats = engine.stats()
        assert stats["adapters_in_slots"] == 8
        # What an adapter takes when it is known and not in memory is next to nothing.
        assert process.memory_info().rss - before < stats["adapter_bytes"] + (256 << 20)

    with_engine(scenario, adapter_slots=8, max_adapters=32)
