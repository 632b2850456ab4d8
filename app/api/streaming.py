"""Answers that are streamed as they are made."""

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.errors import envelope
from app.domain.errors import DomainError
from app.inference.port import EventStream


class EventStreamResponse(StreamingResponse):
    """Passes server-sent events on; an error in the middle becomes the last event."""

    def __init__(self, events: EventStream) -> None:
        super().__init__(
            _with_errors_told(events),
            media_type="text/event-stream",
            # Proxies that buffer would turn a stream into one late answer.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()


async def _with_errors_told(events: EventStream) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except DomainError as error:
        body = envelope(error.message, "server_error", error.param, error.code)
        yield f"data: {json.dumps(body)}\n\n".encode()
