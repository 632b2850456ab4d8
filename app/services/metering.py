"""Counting what is asked of a version and what comes of it, whole answers and streams alike."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.errors import InvalidInput, TooManyRequests
from app.domain.task_routes import CHAT, COMPLETIONS
from app.domain.traffic import Observation, Outcome, Version
from app.inference.port import EventStream, Route
from app.services.streamed_answers import StreamedAnswer
from app.traffic import AliasAnswer, Traffic

_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n)", re.DOTALL)
# Outside of a text, in which every quote has a backslash before it.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NO_USAGE = re.compile(rb',\s*"usage"\s*:\s*null')
_ERROR = re.compile(rb'"error"\s*:\s*\{|"response\.failed"')


class Meter:
    """Counts one request, once.

    Args:
        answer_id: by which whoever asked will know the answer; None: by the `id` that it has.
    """

    def __init__(self, traffic: Traffic, version: Version, answer_id: str | None = None) -> None:
        self._traffic = traffic
        self._version = version
        self._started = time.monotonic()
        self._answer_id = answer_id
        self._is_named = False
        self.seconds = 0.0
        self.completion_tokens = 0
        self.is_over = False

    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._started

    def named(self, answer: Mapping[str, Any]) -> None:
        """Note by its id which version gave an answer, so that feedback on it can be counted."""
        answer_id = self._answer_id or answer.get("id")
        if self._is_named or not self._version.alias_id or self._version.role == "shadow":
            return
        if isinstance(answer_id, str):
            self._is_named = True
            self._traffic.note_answer(AliasAnswer(answer_id, self._version))

    def answered(
        self, usage: Mapping[str, Any] | None, first_token_seconds: float | None = None
    ) -> None:
        usage = usage or {}
        self.completion_tokens = usage.get("completion_tokens", usage.get("output_tokens", 0))
        self._end(
            "answered",
            usage.get("prompt_tokens", usage.get("input_tokens", 0)),
            first_token_seconds,
        )

    def failed(self, error: BaseException | None = None) -> None:
        """Count a request that was not answered; without an error the engine told of one."""
        outcome: Outcome = "failed"
        if isinstance(error, InvalidInput | TooManyRequests):
            outcome = "refused"
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome = "cancelled"
        self._end(outcome, 0, None)

    def _end(self, outcome: Outcome, prompt_tokens: int, first: float | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.seconds = self.elapsed_seconds()
        one = Observation(outcome, self.seconds, prompt_tokens, self.completion_tokens, first)
        self._traffic.count(self._version, one)


def with_usage(route: Route, body: dict[str, Any]) -> dict[str, Any]:
    """Return a request for a stream that ends with its usage, by which tokens are counted."""
    if route not in (CHAT, COMPLETIONS):
        return body
    return body | {"stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}


class MeteredStream:
    """See `port.EventStream`: passes events on as they came, and counts them.

    Args:
        hides_usage: whether usage was asked for here and not by the caller, who does not get it.
        answered: is called with the whole answer when it is complete.
    """

    def __init__(
        self,
        events: EventStream,
        meter: Meter,
        *,
        hides_usage: bool,
        answered: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._events = events
        self._chunks = aiter(events)
        self._meter = meter
        self._hides_usage = hides_usage
        self._answered = answered
        self._collected = StreamedAnswer() if answered else None
        self._rest = b""
        self._usage: Mapping[str, Any] | None = None
        self._first_token_seconds: float | None = None

    def __aiter__(self) -> "MeteredStream":
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._complete()
                if not self._rest:
                    raise
                last, self._rest = self._rest, b""
                return last
            except BaseException as error:
                self._meter.failed(error)
                raise
            if passed := self._pass(chunk):
                return passed

    async def aclose(self) -> None:
        # Whatever was not complete by now, nobody waited for.
        self._meter.failed(asyncio.CancelledError())
        await self._events.aclose()

    def _pass(self, chunk: bytes) -> bytes:
        """Return what of the events that are complete is for the caller."""
        waiting = self._rest + chunk
        passed, end = [], 0
        for event in _EVENT.finditer(waiting):
            passed.append(self._look_at(event[0]))
            end = event.end()
        self._rest = waiting[end:]
        return b"".join(passed)

    def _look_at(self, event: bytes) -> bytes:
        content = _content_of(event)
        if content == b"[DONE]":
            self._complete()
            return event
        has_usage = _USAGE.search(content) is not None
        told: Mapping[str, Any] = {}
        is_needed = self._collected is not None or self._first_token_seconds is None
        if has_usage or is_needed or _ERROR.search(content):
            told = _parsed(content)
            self._meter.named(told.get("response") or told)
        if told.get("error") is not None or told.get("type") == "response.failed":
            self._meter.failed()
        if self._collected is not None:
            self._collected.add(told)
        if self._first_token_seconds is None and _has_output(told):
            self._first_token_seconds = self._meter.elapsed_seconds()
        if has_usage:
            self._usage = told.get("usage") or (told.get("response") or {}).get("usage")
            if self._hides_usage and told.get("choices") == []:
                return b""
        return _NO_USAGE.sub(b"", event) if self._hides_usage else event

    def _complete(self) -> None:
        if self._meter.is_over:
            return
        self._meter.answered(self._usage, self._first_token_seconds)
        if self._answered is not None and self._collected is not None:
            self._answered(self._collected.whole())


def _content_of(event: bytes) -> bytes:
    for line in event.splitlines():
        if line.startswith(b"data:"):
            return line.removeprefix(b"data:").strip()
    return b""


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _has_output(told: Mapping[str, Any]) -> bool:
    """Say whether an event holds something to read, and is not only a beginning."""
    for choice in told.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(
            delta.get(name) for name in ("content", "tool_calls", "refusal", "reasoning_content")
        ):
            return True
    return str(told.get("type", "")).endswith(".delta")
