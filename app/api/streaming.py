"""Answers that are streamed as they are made."""

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from app.api.errors import envelope
from app.domain.errors import DomainError


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Pass server-sent events on; an error in the middle becomes the last event."""
    return StreamingResponse(
        _with_errors_told(events),
        media_type="text/event-stream",
        # Proxies that buffer would turn a stream into one late answer.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _with_errors_told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except DomainError as error:
        body = envelope(error.message, "server_error", error.param, error.code)
        yield f"data: {json.dumps(body)}\n\n".encode()
