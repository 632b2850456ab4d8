"""Streams that are counted on their way."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from app.domain.errors import EngineUnavailable
from app.domain.traffic import Tally, Version
from app.services.metering import Meter, MeteredStream, with_usage
from app.traffic import Traffic

VERSION = Version("proj_1", "ft:a", "alias-1", 2)
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"


class Chunks:
    """An event stream of given chunks; see `port.EventStream`."""

    def __init__(self, chunks: Sequence[bytes | BaseException]) -> None:
        self._chunks = chunks
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    async def aclose(self) -> None:
        self.is_closed = True


def event(**fields: Any) -> bytes:
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], **fields}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def text(content: str, **more: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}}], **more)


# A text that reads like what is taken out stays as it is.
TELLING = text('"usage":null, "usage": {"prompt_tokens": 1}', usage=None)
EVENTS = [text("", usage=None), TELLING, text("x", usage=None), event(usage=USAGE), DONE]


def streamed(
    chunks: Sequence[bytes | BaseException], *, hides_usage: bool = True, stops_after: int = 99
) -> tuple[bytes, Tally, Traffic]:
    """Return what got through, and what was counted."""
    traffic = Traffic()

    async def read() -> bytes:
        source = Chunks(chunks)
        stream = MeteredStream(source, Meter(traffic, VERSION), hides_usage=hides_usage)
        passed = b""
        try:
            async for chunk in stream:
                passed += chunk
                stops_after_this = passed.count(b"\n\n") >= stops_after
                if stops_after_this:
                    break
        finally:
            await stream.aclose()
        assert source.is_closed
        return passed

    passed = asyncio.run(read())
    (tally,) = traffic.take().tallies.values()
    return passed, tally, traffic


@pytest.mark.parametrize("cut", [1, 7, 64, 10_000])
def test_usage_is_counted_and_not_passed_on_unasked(cut: int) -> None:
    whole = b"".join(EVENTS)
    passed, tally, _ = streamed([whole[at : at + cut] for at in range(0, len(whole), cut)])
    told = [text(""), text('"usage":null, "usage": {"prompt_tokens": 1}'), text("x"), DONE]
    assert passed == b"".join(told)
    assert (tally.answered, tally.prompt_tokens, tally.completion_tokens) == (1, 9, 4)
    assert tally.first_tokens.count == 1


def test_usage_that_was_asked_for_is_passed_on() -> None:
    passed, tally, _ = streamed(EVENTS, hides_usage=False)
    assert passed == b"".join(EVENTS)
    assert tally.completion_tokens == 4


def test_a_stream_that_breaks_has_failed() -> None:
    traffic = Traffic()

    async def read() -> None:
        stream = MeteredStream(
            Chunks([EVENTS[0], EngineUnavailable()]), Meter(traffic, VERSION), hides_usage=True
        )
        async for _ in stream:
            pass

    with pytest.raises(EngineUnavailable):
        asyncio.run(read())
    (tally,) = traffic.take().tallies.values()
    assert (tally.failed, tally.answered) == (1, 0)


def test_an_error_event_is_a_failure() -> None:
    error = b'data: {"error": {"message": "the engine stopped", "type": "server_error"}}\n\n'
    passed, tally, _ = streamed([EVENTS[0], error, DONE])
    assert passed.endswith(error + DONE)
    assert (tally.requests, tally.failed, tally.answered) == (1, 1, 0)


def test_a_stream_that_nobody_reads_to_its_end_is_cancelled() -> None:
    _, tally, _ = streamed(EVENTS, stops_after=1)
    assert (tally.requests, tally.cancelled) == (1, 1)


def test_what_has_no_end_mark_is_answered_when_it_ends() -> None:
    created = {"type": "response.created", "response": {"id": "resp_1", "error": None}}
    delta = {"type": "response.output_text.delta", "delta": "x"}
    completed = {
        "type": "response.completed",
        "response": {"id": "resp_1", "usage": {"input_tokens": 3, "output_tokens": 2}},
    }
    chunks = [
        f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode()
        for one in (created, delta, completed)
    ]
    traffic = Traffic()

    async def read() -> bytes:
        stream = MeteredStream(Chunks(chunks), Meter(traffic, VERSION), hides_usage=False)
        return b"".join([chunk async for chunk in stream])

    assert asyncio.run(read()) == b"".join(chunks)
    unwritten = traffic.take()
    assert [one.answer_id for one in unwritten.answers] == ["resp_1"]
    (tally,) = unwritten.tallies.values()
    assert (tally.answered, tally.prompt_tokens, tally.completion_tokens) == (1, 3, 2)
    assert tally.first_tokens.count == 1


def test_usage_is_asked_for_beside_what_was_asked_for() -> None:
    asked = {"model": "x", "stream_options": {"include_obfuscation": False}}
    assert with_usage("/v1/chat/completions", asked)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }
    assert asked["stream_options"] == {"include_obfuscation": False}
