"""Answers that take time: streamed as they are made, and stopped when nobody reads them."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from app.api.errors import envelope
from app.domain.errors import DomainError

T = TypeVar("T")


class ClientGone(Exception):
    """The client went away before its answer was ready."""


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Pass server-sent events on; an error in the middle becomes the last event."""
    return StreamingResponse(
        _with_errors_told(events),
        media_type="text/event-stream",
        # Proxies that buffer would turn a stream into one late answer.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await an answer, and cancel it if the client disconnects first.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.create_task(answer)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body was read: the next message that can come is the disconnection.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_errors_told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except DomainError as error:
        body = envelope(error.message, "server_error", error.param, error.code)
        yield f"data: {json.dumps(body)}\n\n".encode()
