"""Responses that end the work behind them when their client goes away."""

from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send


def json_response(
    body: object, status_code: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a body as JSON."""
    content = msgspec.json.encode(body)
    return Response(content, status_code, headers, media_type="application/json")


def event(body: object) -> bytes:
    """Return a body as one server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


END_OF_EVENTS = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: what to send.
        on_end: called once it is over, however it ends.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # A proxy that buffers would turn the stream into one late answer.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
