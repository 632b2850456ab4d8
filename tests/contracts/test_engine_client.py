"""What the API relies on in an engine's client, against a server with vLLM's answers.

It was not run against a live vLLM server. The same holds for several engines, one of which is away.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.domain.errors import (
    DomainError,
    EngineUnavailable,
    InvalidInput,
    ModelDamaged,
    NotFound,
    TooManyRequests,
)
from app.domain.registry import resolve
from app.inference import AdapterFiles, Caller, EngineClient, MemberFiles, open_engine
from app.inference.port import ENGINES, EngineWork, Route
from app.settings import Settings, load_settings
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import (
    ANSWER,
    DAMAGED,
    DIE,
    FORGOTTEN_AT_ONCE,
    FORGOTTEN_MEANWHILE,
    REFUSE,
    RETRY_AFTER,
    SLOW,
    STATS,
    UNLOADABLE,
    FakeEngine,
    running_fake_engine,
)
from tests.support.ports import free_port

T = TypeVar("T")

CALLER = Caller("proj_1", "low")
ADAPTER = AdapterFiles("ft:base:acme:desk:1", Path("/storage/jobs/1/adapter"))
OTHER = AdapterFiles("ft:base:acme:desk:2", Path("/storage/jobs/2/adapter"))

CHAT: Route = "/v1/chat/completions"


@pytest.fixture(params=[*ENGINES, "several"])
def settings(request: pytest.FixtureRequest) -> Settings:
    is_one = request.param != "several"
    return replace(
        load_settings({}),
        engine_kind=request.param if is_one else "builtin",
        engines=1 if is_one else 2,
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[FakeEngine]:
    is_builtin = settings.engine_kind == "builtin"
    with running_fake_engine(has_idempotent_loads=is_builtin) as engine:
        yield engine


@pytest.fixture
def using(settings: Settings, engine: FakeEngine) -> "Use":
    # Of several engines, each is the first to be asked for some models.
    away = f"http://127.0.0.1:{free_port()}"
    urls = [engine.url] if settings.engines == 1 else [away, engine.url]
    return Use(replace(settings, engine_url=",".join(urls)))


class Use:
    """Runs what a test does with a client that is opened and closed around it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, scenario: Callable[[EngineClient], Awaitable[T]], **changes: Any) -> T:
        async def run() -> T:
            client = open_engine(replace(self._settings, **changes))
            try:
                return await scenario(client)
            finally:
                await client.close()

        return asyncio.run(run())


def chat(prompt: str = "hello", adapter: AdapterFiles | None = None, **more: Any) -> dict[str, Any]:
    model = adapter.name if adapter else BASE_MODEL
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


def complete(prompt: str = "hello", adapter: AdapterFiles | None = None) -> Any:
    return lambda client: client.complete(CHAT, chat(prompt, adapter), adapter, CALLER)


def stream(prompt: str = "hello", adapter: AdapterFiles | None = None) -> Any:
    async def read(client: EngineClient) -> bytes:
        events = await client.stream(CHAT, chat(prompt, adapter, stream=True), adapter, CALLER)
        return b"".join([event async for event in events])

    return read


ways = pytest.mark.parametrize("ask", [complete, stream], ids=["whole", "streamed"])


def test_a_base_model_answers_without_a_load(using: Use, engine: FakeEngine) -> None:
    answer = using(complete())
    assert answer["choices"][0]["message"]["content"] == "".join(ANSWER)
    assert engine.loads == []


def test_a_completion_has_its_own_route(using: Use) -> None:
    body = {"model": BASE_MODEL, "prompt": "hello"}
    answer = using(lambda client: client.complete("/v1/completions", body, None, CALLER))
    assert answer["choices"][0]["text"] == "".join(ANSWER)


def test_embeddings_have_a_route_on_every_engine(using: Use) -> None:
    body = {"model": BASE_MODEL, "input": ["hello", "you"]}
    answer = using(lambda client: client.complete("/v1/embeddings", body, None, CALLER))
    assert [one["index"] for one in answer["data"]] == [0, 1]


def test_a_mean_of_adapters_is_loaded_with_its_members_or_refused(
    using: Use, settings: Settings, engine: FakeEngine
) -> None:
    members = (MemberFiles(ADAPTER.directory, 0.75), MemberFiles(OTHER.directory, 0.25))
    mean = AdapterFiles("ft:base:acme:both:3", ADAPTER.directory, members)
    if settings.engine_kind == "builtin":
        assert using(complete(adapter=mean))["model"] == mean.name
        assert engine.loads == [(mean.name, str(ADAPTER.directory))]
        assert engine.means == [
            [
                {"lora_path": str(ADAPTER.directory), "weight": 0.75},
                {"lora_path": str(OTHER.directory), "weight": 0.25},
            ]
        ]
        return
    with pytest.raises(InvalidInput, match="built-in engine") as refused:
        using(complete(adapter=mean))
    assert refused.value.code == "unsupported_by_engine"
    assert engine.loads == engine.requests == []


def test_predictions_are_refused_where_the_engine_has_none(
    using: Use, settings: Settings, engine: FakeEngine
) -> None:
    body = {"model": ADAPTER.name, "inputs": "hello"}

    async def predict(client: EngineClient) -> Any:
        return await client.complete("/v1/predictions", body, ADAPTER, CALLER)

    if settings.engine_kind == "builtin":
        assert len(using(predict)["predictions"]) == 1
        return
    with pytest.raises(InvalidInput, match="built-in engine") as refused:
        using(predict)
    assert refused.value.code == "unsupported_by_engine"
    assert engine.loads == engine.requests == []


def test_a_stream_is_passed_on_byte_for_byte(using: Use) -> None:
    lines = using(stream()).split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    pieces = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-2]]
    text = [piece["choices"][0]["delta"]["content"] for piece in pieces]
    assert tuple(text) == ANSWER


@ways
def test_an_adapter_is_loaded_before_its_first_answer(
    using: Use, engine: FakeEngine, ask: Any
) -> None:
    using(ask(adapter=ADAPTER))
    assert engine.loads == [(ADAPTER.name, str(ADAPTER.directory))]
    assert engine.requests[0]["model"] == ADAPTER.name


def test_each_adapter_is_loaded_once(using: Use, engine: FakeEngine) -> None:
    async def several(client: EngineClient) -> None:
        for adapter in (ADAPTER, OTHER, ADAPTER, OTHER):
            await complete(adapter=adapter)(client)

    using(several)
    assert [name for name, _ in engine.loads] == [ADAPTER.name, OTHER.name]


def test_first_answers_may_be_asked_for_at_once(using: Use, engine: FakeEngine) -> None:
    async def at_once(client: EngineClient) -> list[Any]:
        return await asyncio.gather(*(complete(adapter=ADAPTER)(client) for _ in range(8)))

    assert len(using(at_once)) == 8
    assert {name for name, _ in engine.loads} == {ADAPTER.name}


def test_an_adapter_that_is_there_already_answers(using: Use, engine: FakeEngine) -> None:
    using(complete(adapter=ADAPTER))
    # Another client, as after a restart of the API: it does not know what is loaded.
    using(complete(adapter=ADAPTER))
    assert len(engine.loads) == 2


@ways
def test_after_a_restart_of_the_engine_an_adapter_is_loaded_again_once(
    using: Use, engine: FakeEngine, ask: Any
) -> None:
    async def across_a_restart(client: EngineClient) -> None:
        await ask(adapter=ADAPTER)(client)
        engine.restart()
        await ask(adapter=ADAPTER)(client)
        await ask(adapter=ADAPTER)(client)

    using(across_a_restart)
    assert len(engine.loads) == 2
    assert len(engine.requests) == 4


def test_an_engine_that_forgets_at_once_is_not_asked_for_ever(
    using: Use, engine: FakeEngine
) -> None:
    adapter = AdapterFiles(FORGOTTEN_AT_ONCE, ADAPTER.directory)

    async def twice(client: EngineClient) -> None:
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await complete(adapter=adapter)(client)

    using(twice)
    assert len(engine.loads) == 2
    assert len(engine.requests) == 3


@ways
def test_an_adapter_that_cannot_be_loaded_is_no_mistake_of_the_caller(
    using: Use, engine: FakeEngine, ask: Any
) -> None:
    with pytest.raises(EngineUnavailable) as failure:
        using(ask(adapter=AdapterFiles(UNLOADABLE, ADAPTER.directory)))
    assert str(ADAPTER.directory) not in failure.value.message
    assert engine.requests == []


def test_damaged_weights_are_told_as_such_and_not_as_an_engine_that_is_away(
    using: Use, engine: FakeEngine
) -> None:
    with pytest.raises(ModelDamaged, match=DAMAGED) as failure:
        using(complete(adapter=AdapterFiles(DAMAGED, ADAPTER.directory)))
    assert str(ADAPTER.directory) not in failure.value.message
    assert engine.requests == []


REFUSALS: list[tuple[int, type[DomainError]]] = [
    (400, InvalidInput),
    (422, InvalidInput),
    (429, TooManyRequests),
    (500, EngineUnavailable),
    (503, EngineUnavailable),
    # The caller's key was checked by us: these are about the key that we sent.
    (401, EngineUnavailable),
    (403, EngineUnavailable),
]


@ways
@pytest.mark.parametrize(("status", "error"), REFUSALS)
def test_a_refusal_becomes_an_error_of_the_domain(
    using: Use, ask: Any, status: int, error: type[DomainError]
) -> None:
    with pytest.raises(error) as refused:
        using(ask(f"{REFUSE}{status}"))
    assert type(refused.value) is error
    assert f"refused with {status}" in refused.value.message


def test_when_to_come_again_is_passed_on(using: Use) -> None:
    with pytest.raises(TooManyRequests) as refused:
        using(complete(f"{REFUSE}429"))
    assert refused.value.retry_after_seconds == int(RETRY_AFTER)


def test_a_refused_field_is_passed_on(using: Use) -> None:
    with pytest.raises(InvalidInput) as refused:
        using(complete(f"{REFUSE}400"))
    # vLLM's own code is a number: OpenAI's are words.
    assert (refused.value.param, refused.value.code) == ("seed", "invalid_value")


@ways
@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["base", "adapter"])
def test_an_engine_that_is_away_is_unavailable(
    settings: Settings, ask: Any, adapter: AdapterFiles | None
) -> None:
    using = Use(replace(settings, engine_url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(EngineUnavailable):
        using(ask(adapter=adapter))
    assert using(lambda client: client.is_ready()) is False


def test_an_engine_that_dies_before_its_answer_is_complete_is_unavailable(using: Use) -> None:
    with pytest.raises(EngineUnavailable, match="middle"):
        using(complete(DIE))


def test_an_engine_that_dies_in_the_middle_of_a_stream_is_unavailable(using: Use) -> None:
    async def read(client: EngineClient) -> None:
        events = await client.stream(CHAT, chat(DIE, stream=True), None, CALLER)
        assert json.loads((await anext(aiter(events))).removeprefix(b"data: "))["choices"]
        with pytest.raises(EngineUnavailable, match="middle"):
            await anext(aiter(events))

    using(read)


def test_an_engine_that_hangs_is_given_up(using: Use, engine: FakeEngine) -> None:
    with pytest.raises(EngineUnavailable):
        using(complete(SLOW), engine_timeout_seconds=0.3)
    assert engine.disconnected.wait(5)


def test_cancelling_an_answer_stops_the_engine(using: Use, engine: FakeEngine) -> None:
    async def cancel(client: EngineClient) -> None:
        answer = asyncio.create_task(complete(SLOW)(client))
        while not engine.requests:
            await asyncio.sleep(0.01)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        assert await asyncio.to_thread(engine.disconnected.wait, 5)

    using(cancel)


def test_closing_a_stream_stops_the_engine(using: Use, engine: FakeEngine) -> None:
    async def leave(client: EngineClient) -> None:
        events = await client.stream(CHAT, chat(SLOW, stream=True), None, CALLER)
        async with aclosing(events):
            assert await anext(aiter(events))
        assert await asyncio.to_thread(engine.disconnected.wait, 5)

    using(leave)


def test_closing_a_stream_before_its_first_event_is_read_stops_the_engine(
    using: Use, engine: FakeEngine
) -> None:
    async def leave(client: EngineClient) -> None:
        events = await client.stream(CHAT, chat(SLOW, stream=True), None, CALLER)
        await events.aclose()
        assert await asyncio.to_thread(engine.disconnected.wait, 5)

    using(leave)


def test_an_answer_that_is_read_to_its_end_disturbs_nothing(using: Use, engine: FakeEngine) -> None:
    async def read_on(client: EngineClient) -> None:
        for _ in range(3):
            await stream()(client)
            await complete()(client)

    using(read_on)
    assert not engine.disconnected.is_set()


def test_a_forgotten_adapter_is_unloaded_and_would_be_loaded_again(
    using: Use, engine: FakeEngine
) -> None:
    async def forget(client: EngineClient) -> None:
        await complete(adapter=ADAPTER)(client)
        await client.forget(ADAPTER.name)
        assert engine.unloads == [ADAPTER.name]
        await complete(adapter=ADAPTER)(client)

    using(forget)
    assert len(engine.loads) == 2


def test_what_is_forgotten_while_it_is_loaded_does_not_stay(using: Use, engine: FakeEngine) -> None:
    """Not even if somebody else, who found it before, begins another load."""
    adapter = replace(ADAPTER, name=FORGOTTEN_MEANWHILE)

    async def forget(client: EngineClient) -> None:
        first = asyncio.create_task(complete(adapter=adapter)(client))
        while not engine.loads:
            await asyncio.sleep(0.01)
        forgetting = asyncio.create_task(client.forget(adapter.name))
        while not engine.unloads:
            await asyncio.sleep(0)
        second = asyncio.create_task(complete(adapter=adapter)(client))
        for answer in (first, second):
            with pytest.raises(NotFound):
                await answer
        await forgetting

    using(forget)
    assert engine.loaded == frozenset()


def test_what_another_process_let_the_engine_forget_is_loaded_before_it_is_asked(
    using: Use, engine: FakeEngine
) -> None:
    async def ask(client: EngineClient) -> None:
        await complete(adapter=ADAPTER)(client)
        engine.restart()
        await client.models()
        await complete(adapter=ADAPTER)(client)

    using(ask)
    assert (len(engine.loads), len(engine.requests)) == (2, 2)


def test_forgetting_what_is_not_there_is_no_error(settings: Settings, using: Use) -> None:
    using(lambda client: client.forget(ADAPTER.name))
    away = Use(replace(settings, engine_url=f"http://127.0.0.1:{free_port()}"))
    away(lambda client: client.forget(ADAPTER.name))


def test_the_builtin_engine_says_what_it_does(settings: Settings, engine: FakeEngine) -> None:
    async def ask() -> EngineWork | None:
        client: EngineClient = resolve(ENGINES[settings.engine_kind])(settings, engine.url)
        try:
            return await client.work()
        finally:
            await client.close()

    work = asyncio.run(ask())
    assert work == (EngineWork(**STATS) if settings.engine_kind == "builtin" else None)


def test_an_engine_that_answers_is_ready(using: Use) -> None:
    assert using(lambda client: client.is_ready()) is True


@pytest.mark.parametrize(("key", "sent"), [(None, None), ("s3cret", "Bearer s3cret")])
def test_the_engine_gets_its_own_key(
    using: Use, engine: FakeEngine, key: str | None, sent: str | None
) -> None:
    using(complete(), engine_api_key=key)
    assert engine.authorizations == [sent]


def test_an_engine_is_told_for_whom_it_works(using: Use, engine: FakeEngine) -> None:
    using(complete())
    assert engine.callers == [("proj_1", "low")]
