"""Answering a request with whatever its model's name stands for: the one way to an engine."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from app.domain.errors import EngineUnavailable, ModelDamaged, NotFound
from app.inference import Caller
from app.inference.port import EventStream, Route
from app.resources import Resources
from app.services import answering, calls, shadows
from app.services.calls import Call
from app.services.metering import Meter, MeteredStream, with_usage
from app.services.shadows import Answered

T = TypeVar("T")


async def complete(
    resources: Resources,
    caller: Caller,
    route: Route,
    body: dict[str, Any],
    *,
    answer_id: str | None = None,
) -> dict[str, Any]:
    """Return one whole answer. Cancelling the call stops the work behind it.

    Args:
        body: the request in OpenAI's wire format; `model` is a name of the caller's project, or an
            alias, of which the answer names the version.
        answer_id: by which whoever asked will know the answer; None: by the `id` that it has.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the model is for another task than the route, or the engine refuses the
            request.
        DomainError: as `EngineClient.complete` does.
    """

    async def ask(call: Call) -> dict[str, Any]:
        meter = Meter(resources.traffic, call.version, answer_id)
        answer = await answering.answer(resources, call, meter)
        _shadow(resources, call, meter, answer)
        return answer

    return await _asked(resources, caller, route, body, ask)


def check(resources: Resources, project_id: str, name: str, route: Route) -> None:
    """Refuse a name that `complete` would refuse on a route, without asking anything.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the model is for another task than the route.
    """
    calls.find(resources, Caller(project_id), route, {"model": name})


async def stream(
    resources: Resources,
    caller: Caller,
    route: Route,
    body: dict[str, Any],
    *,
    answer_id: str | None = None,
) -> EventStream:
    """Return an answer's server-sent events; close them to stop the work behind them.

    Raises: as `complete` does, before the first event; later errors are an event.
    """

    async def ask(call: Call) -> EventStream:
        meter = Meter(resources.traffic, call.version, answer_id)
        asked = with_usage(route, call.body)
        try:
            events = await resources.engine.stream(route, asked, call.files, caller)
        except BaseException as error:
            meter.failed(error)
            raise
        is_wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        return MeteredStream(
            events,
            meter,
            hides_usage=asked is not call.body and not is_wanted,
            answered=partial(_shadow, resources, call, meter) if call.shadow else None,
        )

    return await _asked(resources, caller, route, body, ask)


async def _asked(
    resources: Resources,
    caller: Caller,
    route: Route,
    body: dict[str, Any],
    ask: Callable[[Call], Awaitable[T]],
) -> T:
    """Ask what a request is for; and what came in its place, if it was deleted meanwhile."""
    call = await asyncio.to_thread(calls.find, resources, caller, route, body)
    try:
        return await ask(call)
    except (EngineUnavailable, ModelDamaged, NotFound):
        # Its row goes first, so that an engine may find its files gone, or half gone.
        instead = await asyncio.to_thread(calls.find_instead, resources, call, body)
        if instead is None:
            raise
    return await ask(instead)


def _shadow(resources: Resources, call: Call, meter: Meter, answer: dict[str, Any]) -> None:
    """Let a shadow answer, too, in the background, if there is to be one."""
    if call.shadow is None:
        return
    answered = Answered(
        version=call.version,
        route=call.route,
        body=call.body,
        answer=answer,
        seconds=meter.seconds,
        completion_tokens=meter.completion_tokens,
    )
    shadows.follow(resources, call.shadow, answered)
