"""From the answer of a chat completion to a response."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.domain.ids import new_id

Status = Literal["in_progress", "completed", "incomplete", "failed"]

# Why an answer of a chat completion is not whole, and what that is called here.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def heading(asked: Mapping[str, Any], response_id: str, created_at: int) -> dict[str, Any]:
    """Return a response before there is any answer: what was asked, with its defaults."""
    text = asked.get("text", {})
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata", {}),
        "model": asked["model"],
        "output": [],
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": asked.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": asked.get("temperature", 1.0),
        "text": {"format": text.get("format", {"type": "text"})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": [
            {"description": None, "parameters": None, "strict": False, **tool}
            for tool in asked.get("tools", ())
        ],
        "top_logprobs": asked.get("top_logprobs", 0),
        "top_p": asked.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": asked.get("user"),
    }


def whole(
    asked: Mapping[str, Any], chat: Mapping[str, Any], response_id: str, completed_at: int
) -> dict[str, Any]:
    """Return the response of a complete answer."""
    (choice,) = chat["choices"]
    message = choice["message"]
    calls = message.get("tool_calls") or []
    status = status_of(choice["finish_reason"])
    output = []
    if message.get("content") or not calls:
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        part = text_part(message.get("content") or "", logprobs)
        output.append(message_item(new_id("msg_"), [part], status))
    for call in calls:
        function = call["function"]
        output.append(
            call_item(new_id("fc_"), call["id"], function["name"], function["arguments"], status)
        )
    begun = heading(asked, response_id, chat["created"])
    return ended(begun, chat["model"], output, choice["finish_reason"], chat["usage"], completed_at)


def ended(
    begun: Mapping[str, Any],
    model: str,
    output: Sequence[Mapping[str, Any]],
    finish_reason: str | None,
    usage: Mapping[str, Any] | None,
    completed_at: int,
) -> dict[str, Any]:
    """Return a response whose answer has ended."""
    status = status_of(finish_reason)
    is_whole = status == "completed"
    return {
        **begun,
        "model": model,
        "output": list(output),
        "status": status,
        "completed_at": completed_at if is_whole else None,
        "incomplete_details": None if is_whole else {"reason": _INCOMPLETE[finish_reason or ""]},
        "usage": None if usage is None else _usage(usage),
    }


def status_of(finish_reason: str | None) -> Status:
    return "incomplete" if finish_reason in _INCOMPLETE else "completed"


def message_item(
    item_id: str, content: Sequence[Mapping[str, Any]], status: Status
) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(content),
    }


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def call_item(
    item_id: str, call_id: str, name: str, arguments: str, status: Status
) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
