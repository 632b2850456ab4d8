"""What all routes of inference do with a checked request: pass it on, and answer what comes."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from app.api.schemas.common import Request as WireRequest
from app.api.streaming import EventStreamResponse
from app.db.repositories.keys import Principal
from app.disconnect import unless_disconnected
from app.domain.errors import InvalidInput
from app.inference import Caller
from app.inference.port import EventStream, Route
from app.resources import Resources
from app.services import inference

# The status that a log shows for a request whose client went away; nobody receives it.
CLIENT_CLOSED_REQUEST = 499


async def answer(
    request: Request, resources: Resources, principal: Principal, route: Route, body: WireRequest
) -> Response:
    """Answer a request, streamed if it says so; the work ends when its client goes away.

    Raises: as `services.inference.complete` does.
    """
    caller = Caller(principal.project_id)
    return await answer_by(
        request,
        body,
        partial(inference.complete, resources, caller, route),
        partial(inference.stream, resources, caller, route),
    )


async def answer_by(
    request: Request,
    body: WireRequest,
    complete: Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]],
    stream: Callable[[dict[str, Any]], Coroutine[Any, Any, EventStream]],
) -> Response:
    """As `answer`, by what makes a whole answer and what makes a stream."""
    wire = as_wire(body)
    try:
        if wire.get("stream"):
            return EventStreamResponse(await unless_disconnected(request, stream(wire)))
        return JSONResponse(await unless_disconnected(request, complete(wire)))
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def as_wire(body: WireRequest) -> dict[str, Any]:
    """Return a request as it came. Raises: InvalidInput, if it is nested too deep."""
    try:
        return body.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    except UnicodeEncodeError:
        raise
    except (ValueError, RecursionError):
        raise InvalidInput("The request is nested too deep.") from None
