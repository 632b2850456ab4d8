"""Several engines as one: who is asked, and who answers instead of one that cannot."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.domain.errors import EngineUnavailable, InvalidInput, TooManyRequests
from app.inference import AdapterFiles, Caller, EngineRouter, open_engine
from app.settings import load_settings
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ANSWER, DIE, SLOW, FakeEngine, running_fake_engine, serving
from tests.support.ports import free_port

T = TypeVar("T")

CALLER = Caller("proj_1")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[FakeEngine]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(running_fake_engine(has_idempotent_loads=True)) for _ in range(2)
        ]


@pytest.fixture
def engines(servers: list[FakeEngine]) -> list[FakeEngine]:
    """Two engines that have nothing to do yet."""
    for engine in servers:
        engine.restart()
        engine.loads.clear()
        engine.requests.clear()
        engine.refusal = None
        engine.disconnected.clear()
    return servers


def using(urls: list[str], scenario: Callable[[EngineRouter], Awaitable[T]], **more: str) -> T:
    """Run what a test does with a client of engines."""

    async def run() -> T:
        router = open_engine(load_settings({"ENGINE_URL": ",".join(urls), **more}))
        try:
            return await scenario(router)
        finally:
            await router.close()

    return asyncio.run(run())


def adapter(number: int = 1) -> AdapterFiles:
    return AdapterFiles(
        f"ft:{BASE_MODEL}:acme:desk:{number}", Path(f"/storage/{number}"), base_model=BASE_MODEL
    )


def body(model: str, prompt: str = "hello") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


async def ask(
    router: EngineRouter, files: AdapterFiles | None = None, prompt: str = "hello"
) -> dict[str, Any]:
    return await router.complete(
        CHAT, body(files.name if files else BASE_MODEL, prompt), files, CALLER
    )


async def listen(router: EngineRouter, files: AdapterFiles, prompt: str = "hello") -> bytes:
    asked = body(files.name, prompt) | {"stream": True}
    return b"".join([event async for event in await router.stream(CHAT, asked, files, CALLER)])


def urls_of(engines: list[FakeEngine]) -> list[str]:
    return [engine.url for engine in engines]


def test_each_adapter_has_an_engine_and_all_have_some(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> None:
        for _ in range(2):
            for number in range(12):
                await ask(router, adapter(number))

    using(urls_of(engines), scenario)
    held = [engine.loaded for engine in engines]
    assert not held[0] & held[1]
    assert len(held[0] | held[1]) == 12
    assert min(map(len, held)) > 1
    assert sum(len(engine.loads) for engine in engines) == 12


def test_what_is_too_much_for_one_engine_is_for_the_other(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> list[int]:
        slow = [asyncio.create_task(ask(router, adapter(), SLOW)) for _ in range(10)]
        while sum(len(engine.requests) for engine in engines) < 10:
            await asyncio.sleep(0.01)
        outstanding = [state.outstanding for state in router.states()]
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert [state.outstanding for state in router.states()] == [0, 0]
        return outstanding

    outstanding = using(urls_of(engines), scenario)
    assert sum(outstanding) == 10
    assert min(outstanding) >= 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_where_one_refuses_for_want_of_room_the_other_answers(
    engines: list[FakeEngine], status: int
) -> None:
    engines[0].refusal = status

    async def scenario(router: EngineRouter) -> None:
        for number in range(6):
            assert await ask(router, adapter(number))
            assert await listen(router, adapter(number))

    using(urls_of(engines), scenario)
    assert engines[0].requests
    assert len(engines[1].requests) == 12


def test_where_all_are_full_the_caller_hears_of_it(engines: list[FakeEngine]) -> None:
    engines[0].refusal, engines[1].refusal = 503, 429
    with pytest.raises(TooManyRequests):
        using(urls_of(engines), ask)


def test_a_mistake_of_the_caller_is_not_tried_elsewhere(engines: list[FakeEngine]) -> None:
    engines[0].refusal = engines[1].refusal = 400
    with pytest.raises(InvalidInput):
        using(urls_of(engines), ask)
    assert sum(len(engine.requests) for engine in engines) == 1


@pytest.mark.parametrize("way", [ask, listen])
def test_one_that_dies_before_its_answer_has_begun_is_left_for_another(
    engines: list[FakeEngine], way: Any
) -> None:
    async def scenario(router: EngineRouter) -> None:
        for number in range(40):
            assert await way(router, adapter(number))
            if any(came.startswith(b"POST") for came in deaths):
                return

    with dying_engine() as (url, deaths):
        using([url, engines[1].url], scenario)
        assert any(came.startswith(b"POST") for came in deaths)


def test_one_that_dies_in_the_middle_ends_its_stream(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> None:
        asked = body(BASE_MODEL, DIE) | {"stream": True}
        events = aiter(await router.stream(CHAT, asked, None, CALLER))
        assert ANSWER[0].encode() in await anext(events)
        with pytest.raises(EngineUnavailable, match="middle"):
            await anext(events)
        assert [state.outstanding for state in router.states()] == [0, 0]

    using(urls_of(engines), scenario)
    # Half of an answer was heard: another engine would say something else.
    assert sum(len(engine.requests) for engine in engines) == 1


def test_what_fails_everywhere_is_not_tried_everywhere(engines: list[FakeEngine]) -> None:
    with ExitStack() as stack:
        more = [stack.enter_context(running_fake_engine()) for _ in range(1)]
        for engine in (*engines, *more):
            engine.refusal = 500
        with pytest.raises(EngineUnavailable):
            using(urls_of([*engines, *more]), ask)
        assert sum(len(engine.requests) for engine in (*engines, *more)) == 2


def test_an_engine_that_is_away_costs_one_look_and_is_asked_again_when_it_is_back() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine = FakeEngine(has_idempotent_loads=True)

    async def is_up(router: EngineRouter, wanted: bool) -> None:
        async with asyncio.timeout(10):
            while router.states()[0].is_up is not wanted:
                await asyncio.sleep(0.01)

    async def scenario(router: EngineRouter) -> None:
        with pytest.raises(EngineUnavailable):
            await ask(router, adapter())
        assert not router.states()[0].is_up
        with ExitStack() as running:
            await asyncio.to_thread(running.enter_context, serving(engine, port))
            await is_up(router, True)
            assert await ask(router, adapter())
            await asyncio.to_thread(running.close)
        await is_up(router, False)
        # Deleted while the engine is away: it hears of it as soon as it is back.
        await router.forget(adapter().name)
        assert adapter().name in engine.loaded
        with ExitStack() as running:
            await asyncio.to_thread(running.enter_context, serving(engine, port))
            async with asyncio.timeout(10):
                while engine.loaded:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(running.close)

    using([url], scenario)


def test_every_engine_forgets_a_deleted_adapter(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> None:
        await ask(router, adapter())
        engines[0].restart()
        engines[1].restart()
        for engine in engines:
            # As when both have answered with it.
            engine.hold(adapter().name)
        await router.forget(adapter().name)

    using(urls_of(engines), scenario)
    assert [engine.loaded for engine in engines] == [frozenset(), frozenset()]


def test_a_vllm_server_is_asked_for_its_own_base_models_only() -> None:
    with running_fake_engine(bases=("one",)) as one, running_fake_engine(bases=("two",)) as two:

        async def scenario(router: EngineRouter) -> None:
            for base, engine in (("one", one), ("two", two)):
                for number in range(4):
                    name = f"ft:{base}:acme:desk:{number}"
                    files = AdapterFiles(name, Path(f"/storage/{base}"), base_model=base)
                    await ask(router, files)
                await router.complete(CHAT, body(base), None, CALLER)
                assert {request["model"].partition(":")[0] for request in engine.requests} == {
                    "ft",
                    base,
                }
            with pytest.raises(EngineUnavailable, match="three"):
                await router.complete(CHAT, body("three"), None, CALLER)

        using(urls_of([one, two]), scenario, ENGINE_KIND="vllm")
        assert len(one.requests) == len(two.requests) == 5
        assert len(one.loads) == len(two.loads) == 4


def test_an_engine_can_be_kept_for_a_base_model(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> None:
        for number in range(8):
            await ask(router, adapter(number))

    using([f"{engines[0].url}?base=other", engines[1].url], scenario)
    assert engines[0].requests == []


def test_what_one_kind_of_engine_cannot_do_another_does(engines: list[FakeEngine]) -> None:
    async def scenario(router: EngineRouter) -> None:
        for number in range(6):
            asked = {"model": adapter(number).name, "inputs": "hello"}
            await router.complete("/v1/predictions", asked, adapter(number), CALLER)

    using([f"vllm+{engines[0].url}", engines[1].url], scenario)
    assert engines[0].requests == []
    with pytest.raises(InvalidInput, match="built-in engine"):
        using([f"vllm+{engines[0].url}"], scenario)


@contextmanager
def dying_engine() -> Iterator[tuple[str, list[bytes]]]:
    """Listen, and hang up as soon as a request has come; yield the URL and what came."""
    deaths: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    deaths.append(connection.recv(65536))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", deaths
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
