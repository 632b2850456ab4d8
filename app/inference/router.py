"""Several engines as one: each request goes to the engine that is best for it.

An engine that cannot be connected to, or that fails before its answer has begun, is left for
another one: generating has no side effects. One that is full is left for one with room.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from app.domain.errors import DomainError, EngineUnavailable, InvalidInput, TooManyRequests
from app.domain.registry import resolve
from app.inference.choosing import by_preference
from app.inference.endpoints import endpoints
from app.inference.port import (
    ENGINES,
    AdapterFiles,
    Caller,
    EngineClient,
    EngineModel,
    EngineTimeout,
    EngineUnreachable,
    EngineWork,
    EventStream,
    Route,
)
from app.inference.watched import WatchedEngine
from app.settings import Settings

T = TypeVar("T")

# How soon an engine that came back is used again, and one that hangs no more.
LOOK_EVERY_SECONDS = 0.5
# How many engines may fail at one request: what fails everywhere is not tried everywhere.
_MAX_FAILURES = 2

# Kinds whose servers have the base models that they were started with, and no others.
_WITH_FIXED_BASES = frozenset({"vllm"})


@dataclass(frozen=True, slots=True)
class EngineState:
    """What is known of one engine.

    Attributes:
        outstanding: requests of this process that it works on.
        work: what it said at the last look; None if it said nothing.
    """

    url: str
    kind: str
    is_up: bool
    outstanding: int
    work: EngineWork | None


def open_engine(settings: Settings) -> "EngineRouter":
    """Open a client of all engines that the settings name. Raises: InvalidInput, UnknownName."""
    engines = []
    for endpoint in endpoints(settings):
        client: EngineClient = resolve(ENGINES[endpoint.kind])(settings, endpoint.url)
        has_fixed_bases = endpoint.kind in _WITH_FIXED_BASES
        engines.append(WatchedEngine(endpoint, client, is_asked_for_bases=has_fixed_bases))
    return EngineRouter(engines)


class EngineRouter:
    """An `EngineClient` over those of several engines. Used on one event loop alone."""

    def __init__(self, engines: Sequence[WatchedEngine]) -> None:
        self._engines = {engine.endpoint.url: engine for engine in engines}
        self._watching: asyncio.Task[None] | None = None
        self._has_looked = asyncio.Event()

    async def complete(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> dict[str, Any]:
        async def ask(engine: WatchedEngine) -> dict[str, Any]:
            with engine.working():
                return await engine.client.complete(route, body, adapter, caller)

        return await self._ask(ask, body, adapter)

    async def stream(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> EventStream:
        async def ask(engine: WatchedEngine) -> EventStream:
            with ExitStack() as stack:
                stack.enter_context(engine.working())
                events = await engine.client.stream(route, body, adapter, caller)
                return _CountedEvents(events, stack.pop_all())

        return await self._ask(ask, body, adapter)

    async def forget(self, adapter_name: str) -> None:
        """Let every engine unload an adapter; one that is away is told when it is back."""
        await asyncio.gather(*(one.forget(adapter_name) for one in self._engines.values()))

    async def prefetch(self, adapter: AdapterFiles) -> None:
        """Let the engine that will be asked first read an adapter."""
        order = self._in_order(adapter.base_model, adapter)
        if order and order[0].is_up:
            await order[0].client.prefetch(adapter)

    async def models(self) -> Sequence[EngineModel]:
        """Return the models that any engine has now; an engine that is away has none."""
        each = await asyncio.gather(*(one.models() for one in self._engines.values()))
        return list(dict.fromkeys(model for models in each for model in models))

    async def work(self) -> EngineWork | None:
        """Return what the engines do together, as each said at the last look."""
        works = [astuple(one.work) for one in self._engines.values() if one.work is not None]
        return EngineWork(*map(sum, zip(*works, strict=True))) if works else None

    async def is_ready(self) -> bool:
        """Say whether any engine answers."""
        return any(state.is_up for state in await self.look())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for engine in self._engines.values():
            await engine.client.close()

    def watch(self) -> None:
        """Look at the engines from now on until the end; asking for an answer does so, too."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="engines")

    async def look(self) -> list[EngineState]:
        """Ask every engine whether it answers, and return what is known of each."""
        answers = await asyncio.gather(*(one.client.is_ready() for one in self._engines.values()))
        states = zip(self.states(), answers, strict=True)
        return [replace(state, is_up=is_ready) for state, is_ready in states]

    def states(self) -> list[EngineState]:
        """Return what is known of each engine. May be called from any thread."""
        return [
            EngineState(
                url=engine.endpoint.url,
                kind=engine.endpoint.kind,
                is_up=engine.is_up,
                outstanding=engine.outstanding,
                work=engine.work,
            )
            for engine in self._engines.values()
        ]

    async def _ask(
        self,
        ask: Callable[[WatchedEngine], Awaitable[T]],
        body: dict[str, Any],
        adapter: AdapterFiles | None,
    ) -> T:
        self.watch()
        base_model = str(body.get("model")) if adapter is None else adapter.base_model
        if not all(engine.is_known for engine in self._engines.values()):
            await self._has_looked.wait()
        refusals: list[DomainError] = []
        failures = 0
        for engine in self._in_order(base_model, adapter):
            try:
                return await ask(engine)
            except EngineTimeout:
                # It may still be at it: whoever waited for so long is not let wait for another.
                raise
            except EngineUnreachable as error:
                engine.set_away("it cannot be connected to")
                refusals.append(error)
            except EngineUnavailable as error:
                failures += 1
                if failures == _MAX_FAILURES:
                    raise
                refusals.append(error)
            except TooManyRequests as error:
                refusals.append(error)
            except InvalidInput as error:
                if error.code != "unsupported_by_engine":
                    raise
                refusals.append(error)
        raise _most_telling(refusals, base_model)

    def _in_order(
        self, base_model: str | None, adapter: AdapterFiles | None
    ) -> list[WatchedEngine]:
        """Return the engines that could answer, those that are away last."""
        able = [one for one in self._engines.values() if one.answers_with(base_model)]
        order: list[WatchedEngine] = []
        for is_up in (True, False):
            loads = {one.endpoint.url: one.outstanding for one in able if one.is_up is is_up}
            names = by_preference(loads, base_model or "", adapter.name if adapter else None)
            order += [self._engines[name] for name in names]
        return order

    async def _watch(self) -> None:
        engines = self._engines.values()
        await asyncio.gather(*(engine.look() for engine in engines))
        self._has_looked.set()
        # Each by itself: one that hangs must not hold up the looks at the others.
        await asyncio.gather(*(_keep_looking(engine) for engine in engines))


class _CountedEvents:
    """An engine's events, which count among its work until they are closed or at their end."""

    def __init__(self, events: EventStream, work: ExitStack) -> None:
        self._events = events
        self._chunks = aiter(events)
        self._work = work

    def __aiter__(self) -> "_CountedEvents":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except BaseException:
            self._work.close()
            raise

    async def aclose(self) -> None:
        self._work.close()
        await self._events.aclose()


async def _keep_looking(engine: WatchedEngine) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        await engine.look()


def _most_telling(refusals: Sequence[DomainError], base_model: str | None) -> DomainError:
    """Return what the caller is to hear of an answer that no engine gave."""
    if not refusals:
        return EngineUnavailable(f"No inference engine answers with {base_model!r}.")
    # A full engine will have room, and what an engine says tells more than that one is away.
    return max(refusals, key=_telling)


def _telling(refusal: DomainError) -> tuple[int, float]:
    """Rank what an engine said; among equals the first engine's word counts."""
    if isinstance(refusal, TooManyRequests):
        # The engine that will have room first.
        return 3, -(refusal.retry_after_seconds or 0)
    if isinstance(refusal, EngineUnreachable):
        return 1, 0
    return (2, 0) if isinstance(refusal, EngineUnavailable) else (0, 0)
