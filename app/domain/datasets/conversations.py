"""Checks of records that hold conversations: chat, reinforcement, preference."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from app.domain.datasets.faults import WrongRecord, quoted, quoted_list, shortened
from app.domain.datasets.limits import MAX_NESTING, MAX_SHOWN_CHARACTERS
from app.domain.datasets.records import (
    ChatRecord,
    Message,
    PreferenceRecord,
    ReinforcementRecord,
)

_CHAT_KEYS = frozenset(ChatRecord.__struct_fields__)


def is_for_reinforcement(record: Mapping[str, Any]) -> bool:
    """Whether a record with messages has no answer to learn, but something to grade one by."""
    messages = record.get("messages")
    if record.keys() <= _CHAT_KEYS or not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    return isinstance(last, dict) and last.get("role") != "assistant"


def check_chat(record: ChatRecord) -> ChatRecord:
    """Raises: WrongRecord."""
    if not record.messages:
        raise WrongRecord("'messages' is empty; expected at least one assistant message")
    _check_messages(record.messages, "messages")
    if (last := record.messages[-1].role) != "assistant":
        raise WrongRecord(
            f"the last message must be the assistant's answer, found role {last!r} (for "
            "reinforcement, add a field for the grader, such as reference_answer)"
        )
    if record.tools is not None:
        _check_tools(record.tools, "tools")
    return record


def check_reinforcement(record: dict[str, Any]) -> ReinforcementRecord:
    """Raises: WrongRecord. msgspec.ValidationError."""
    known = {key: value for key, value in record.items() if key in _CHAT_KEYS}
    chat = msgspec.convert(known, ChatRecord)
    item = {key: value for key, value in record.items() if key not in _CHAT_KEYS}
    if not item:
        raise WrongRecord(
            "there is nothing to grade an answer by; expected a key besides 'messages', such as "
            "'reference_answer'"
        )
    if not chat.messages:
        raise WrongRecord("'messages' is empty; expected at least one message")
    _check_messages(chat.messages, "messages")
    if chat.messages[-1].role == "assistant":
        raise WrongRecord(
            "the last message is the assistant's, but in reinforcement the model writes it; end "
            f"with the user's, or leave out {quoted_list(item)} for supervised learning"
        )
    if chat.tools is not None:
        _check_tools(chat.tools, "tools")
    for key, value in item.items():
        _check_nesting(value, shortened(key, MAX_SHOWN_CHARACTERS))
        if not _is_json(value):
            raise WrongRecord(
                f"{quoted(key)} holds what JSON does not: expected text, finite numbers, true or "
                "false, lists and objects"
            )
    return ReinforcementRecord(
        messages=chat.messages,
        item=item,
        tools=chat.tools,
        parallel_tool_calls=chat.parallel_tool_calls,
    )


def check_preference(record: PreferenceRecord) -> PreferenceRecord:
    """Raises: WrongRecord."""
    if not record.input.messages:
        raise WrongRecord("'input.messages' is empty; expected at least one message")
    _check_messages(record.input.messages, "input.messages")
    if record.input.messages[-1].role == "assistant":
        raise WrongRecord(
            "'input.messages' ends with the assistant's answer; put the answers into "
            "'preferred_output' and 'non_preferred_output'"
        )
    if record.input.tools is not None:
        _check_tools(record.input.tools, "input.tools")
    _check_answer(record.preferred_output, "preferred_output")
    _check_answer(record.non_preferred_output, "non_preferred_output")
    if record.preferred_output == record.non_preferred_output:
        raise WrongRecord(
            "'preferred_output' and 'non_preferred_output' are the same; there is nothing to prefer"
        )
    return record


def _check_answer(messages: Sequence[Message], where: str) -> None:
    if not messages:
        raise WrongRecord(f"'{where}' is empty; expected the assistant's message")
    _check_messages(messages, where)
    for index, message in enumerate(messages):
        if message.role not in ("assistant", "tool"):
            raise WrongRecord(f"'{where}[{index}].role' is {message.role!r}; expected 'assistant'")
    if messages[-1].role != "assistant":
        raise WrongRecord(f"'{where}' must end with the assistant's message")


def _check_messages(messages: Sequence[Message], path: str) -> None:
    for index, message in enumerate(messages):
        where = f"{path}[{index}]"
        if isinstance(message.content, list):
            message.content = "".join(part.text for part in message.content)
        has_call = bool(message.tool_calls) or message.function_call is not None
        if message.content is None and not (message.role == "assistant" and has_call):
            raise WrongRecord(f"'{where}.content' is missing; expected text")
        if message.weight is not None and message.role != "assistant":
            raise WrongRecord(f"'{where}.weight' is for assistant messages only")
        if has_call:
            _check_nesting(message.tool_calls, where)
            _check_nesting(message.function_call, where)
            if message.role != "assistant":
                raise WrongRecord(f"'{where}.tool_calls' is for assistant messages only")


def _check_tools(tools: Sequence[dict[str, Any]], where: str) -> None:
    for index, tool in enumerate(tools):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise WrongRecord(
                f"'{where}[{index}]' must be {{'type': 'function', 'function': {{…}}}}"
            )
    _check_nesting(tools, where)


def _check_nesting(value: Any, where: str) -> None:
    if is_nested_deeper(value, MAX_NESTING):
        raise WrongRecord(f"'{where}' is nested deeper than {MAX_NESTING} levels")


def is_nested_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_nested_deeper(child, levels - 1) for child in children)


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    if isinstance(value, list):
        return all(_is_json(one) for one in value)
    return value is None or isinstance(value, str | int)
