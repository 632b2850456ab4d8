"""From the chunks of a streamed chat completion to the events of a response."""

from collections.abc import Mapping
from typing import Any

from app.domain.ids import new_id
from app.domain.responses.answers import (
    Status,
    call_item,
    ended,
    heading,
    message_item,
    status_of,
    text_part,
)

Event = dict[str, Any]


class ResponseEvents:
    """The events of one response, in order. An item ends where the next begins.

    Args:
        asked: the request.
        response_id: by which the response is known.
        now: seconds since the epoch.
    """

    def __init__(self, asked: Mapping[str, Any], response_id: str, now: int) -> None:
        self._begun = heading(asked, response_id, now)
        self._model: str = asked["model"]
        self._output: list[dict[str, Any]] = []
        self._open: _OpenMessage | _OpenCall | None = None
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._number = 0

    def opening(self) -> list[Event]:
        """Return what a stream begins with, before there is any text."""
        return [
            self._event(f"response.{name}", response=self._begun)
            for name in ("created", "in_progress")
        ]

    def take(self, chunk: Mapping[str, Any]) -> list[Event]:
        """Return the events that a chunk makes."""
        self._model = chunk.get("model", self._model)
        self._usage = chunk.get("usage") or self._usage
        events: list[Event] = []
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                logprobs = (choice.get("logprobs") or {}).get("content") or []
                events += self._say(text, logprobs)
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return events

    def ending(self, now: int) -> list[Event]:
        """Return what follows the last chunk."""
        events = [] if self._open or self._output else self._open_message()
        status = status_of(self._finish_reason)
        events += self._close(status)
        reason, usage = self._finish_reason, self._usage
        response = ended(self._begun, self._model, self._output, reason, usage, now)
        return [*events, self._event(f"response.{status}", response=response)]

    def failing(self, code: str | None, message: str) -> list[Event]:
        """Return the end of a response whose answer broke off."""
        known = code if code == "rate_limit_exceeded" else "server_error"
        error = {"code": known, "message": message}
        failed = {**self._begun, "output": self._output, "status": "failed", "error": error}
        return [self._event("response.failed", response=failed)]

    def _say(self, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        events = [] if isinstance(self._open, _OpenMessage) else self._open_message()
        assert isinstance(self._open, _OpenMessage)
        self._open.text += text
        self._open.logprobs += logprobs
        events.append(
            self._of_part("response.output_text.delta", delta=text, logprobs=list(logprobs))
        )
        return events

    def _call(self, call: Mapping[str, Any]) -> list[Event]:
        function = call.get("function") or {}
        events: list[Event] = []
        if call.get("id") or not isinstance(self._open, _OpenCall):
            events += self._close("completed")
            call_id = call.get("id") or new_id("call_")
            self._open = _OpenCall(new_id("fc_"), call_id, function.get("name") or "")
            events.append(self._added(self._open.item("in_progress", "")))
        if part := function.get("arguments"):
            self._open.arguments += part
            events.append(self._of_item("response.function_call_arguments.delta", delta=part))
        return events

    def _open_message(self) -> list[Event]:
        events = self._close("completed")
        self._open = _OpenMessage(new_id("msg_"))
        events.append(self._added(message_item(self._open.id, [], "in_progress")))
        events.append(self._of_part("response.content_part.added", part=text_part("", [])))
        return events

    def _close(self, status: Status) -> list[Event]:
        """End the item that is open, if one is."""
        item, events = self._open, list[Event]()
        if item is None:
            return events
        if isinstance(item, _OpenMessage):
            text, logprobs = item.text, item.logprobs
            done = self._of_part("response.output_text.done", text=text, logprobs=logprobs)
            part = text_part(text, logprobs)
            events += [done, self._of_part("response.content_part.done", part=part)]
            whole = message_item(item.id, [part], status)
        else:
            name = "response.function_call_arguments.done"
            events.append(self._of_item(name, name=item.name, arguments=item.arguments))
            whole = item.item(status, item.arguments)
        index = len(self._output)
        events.append(self._event("response.output_item.done", output_index=index, item=whole))
        self._output.append(whole)
        self._open = None
        return events

    def _added(self, item: dict[str, Any]) -> Event:
        index = len(self._output)
        return self._event("response.output_item.added", output_index=index, item=item)

    def _of_part(self, event_type: str, **fields: Any) -> Event:
        return self._of_item(event_type, content_index=0, **fields)

    def _of_item(self, event_type: str, **fields: Any) -> Event:
        assert self._open is not None
        index = len(self._output)
        return self._event(event_type, item_id=self._open.id, output_index=index, **fields)

    def _event(self, event_type: str, **fields: Any) -> Event:
        number = self._number
        self._number += 1
        return {"type": event_type, "sequence_number": number, **fields}


class _OpenMessage:
    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.text = ""
        self.logprobs: list[dict[str, Any]] = []


class _OpenCall:
    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        self.id = item_id
        self.name = name
        self.arguments = ""
        self._call_id = call_id

    def item(self, status: Status, arguments: str) -> dict[str, Any]:
        return call_item(self.id, self._call_id, self.name, arguments, status)
