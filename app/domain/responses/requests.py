"""From a request for a response to one for a chat completion."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.errors import InvalidInput

# Fields that chat completions have by the same name, and with the same meaning.
_SAME = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
)

LOGPROBS = "message.output_text.logprobs"

# What the fields of a chat completion are called here, the longer names first.
_NAMES = (
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("].function", "]"),
    ("'messages", "'input"),
)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for a chat completion that says the same.

    Raises:
        InvalidInput: an item answers a call that is not there, or comes where none can.
    """
    chat: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = _messages(body)
    if "max_output_tokens" in body:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if "top_logprobs" in body or LOGPROBS in body.get("include", ()):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)}
    if body.get("tools"):
        chat["tools"] = [_tool(tool) for tool in body["tools"]]
    if "tool_choice" in body:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    if form := body.get("text", {}).get("format"):
        chat["response_format"] = _response_format(form)
    if body.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def renamed(error: InvalidInput) -> InvalidInput:
    """Return what an engine refuses of a chat completion, by the names of this interface."""
    param, message = error.param, error.message
    for name, here in _NAMES:
        message = message.replace(name, here)
        # Params are not quoted.
        param = param and f"'{param}".replace(name, here).removeprefix("'")
    return InvalidInput(message, param=param, code=error.code)


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if "instructions" in body:
        messages.append({"role": "system", "content": body["instructions"]})
    asked = body["input"]
    if isinstance(asked, str):
        return [*messages, {"role": "user", "content": asked}]
    for number, item in enumerate(asked):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item["role"], "content": _text(item["content"])})
        elif kind == "function_call":
            _add_call(messages, item)
        else:
            _refuse_unless_called(messages, item, f"input[{number}].call_id")
            content = _text(item["output"])
            answer = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
            messages.append(answer)
    return messages


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Add a call to the assistant's turn: what it says and all that it calls are one message."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _refuse_unless_called(
    messages: Sequence[Mapping[str, Any]], item: Mapping[str, Any], param: str
) -> None:
    calls = (call for message in messages for call in message.get("tool_calls", ()))
    if all(call["id"] != item["call_id"] for call in calls):
        raise InvalidInput(
            f"'{param}' is {item['call_id']!r}, which no 'function_call' before it has", param=param
        )


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice["name"]}}


def _response_format(form: Mapping[str, Any]) -> dict[str, Any]:
    if form["type"] != "json_schema":
        return {"type": form["type"]}
    described = {name: value for name, value in form.items() if name != "type"}
    return {"type": "json_schema", "json_schema": described}
