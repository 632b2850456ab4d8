"""Responses: answered by chat completions, and kept nowhere."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from app.domain.errors import DomainError, EngineUnavailable, InvalidInput
from app.domain.ids import new_id
from app.domain.responses import answers
from app.domain.responses.events import Event, ResponseEvents
from app.domain.responses.requests import as_chat, renamed
from app.domain.task_routes import CHAT
from app.inference import Caller
from app.inference.port import EventStream
from app.resources import Resources
from app.services import inference


async def complete(resources: Resources, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
    """Return one whole response. Raises: as `inference.complete` does."""
    chat, response_id = as_chat(body), new_id("resp_")
    try:
        answer = await inference.complete(resources, caller, CHAT, chat, answer_id=response_id)
    except InvalidInput as error:
        raise renamed(error) from None
    return answers.whole(body, answer, response_id, _now())


async def stream(resources: Resources, caller: Caller, body: dict[str, Any]) -> EventStream:
    """Return a response's server-sent events. Raises: as `inference.stream` does."""
    chat, response_id = as_chat(body), new_id("resp_")
    try:
        chunks = await inference.stream(resources, caller, CHAT, chat, answer_id=response_id)
    except InvalidInput as error:
        raise renamed(error) from None
    return _Events(chunks, ResponseEvents(body, response_id, _now()))


class _Events:
    """See `port.EventStream`: made of the chunks of a chat completion as they come."""

    def __init__(self, chunks: EventStream, events: ResponseEvents) -> None:
        self._chunks = chunks
        self._events = events
        self._written = self._write()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._written

    async def aclose(self) -> None:
        await self._chunks.aclose()

    async def _write(self) -> AsyncIterator[bytes]:
        for event in self._events.opening():
            yield _as_bytes(event)
        try:
            async for chunk in _objects(self._chunks):
                if error := chunk.get("error"):
                    raise EngineUnavailable(str(error["message"]), code=error.get("code"))
                for event in self._events.take(chunk):
                    yield _as_bytes(event)
        except DomainError as error:
            for event in self._events.failing(error.code, error.message):
                yield _as_bytes(event)
            return
        for event in self._events.ending(_now()):
            yield _as_bytes(event)


async def _objects(chunks: EventStream) -> AsyncIterator[dict[str, Any]]:
    """Yield what the server-sent events of a chat completion hold."""
    left = b""
    async for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            held = line.strip().removeprefix(b"data:").strip()
            if line.startswith(b"data:") and held != b"[DONE]":
                yield json.loads(held)


def _as_bytes(event: Event) -> bytes:
    written = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {written}\n\n".encode()


def _now() -> int:
    return int(time.time())
