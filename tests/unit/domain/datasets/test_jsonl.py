import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets import (
    MAX_RECORD_BYTES,
    ChatRecord,
    CompletionRecord,
    DatasetSummary,
    as_template_messages,
    read_records,
)
from app.domain.datasets.limits import MAX_MEDIA_RECORD_BYTES
from app.domain.errors import InvalidFile
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    MAX_MESSAGE_CHARACTERS,
    TOOL,
    USER,
    chat,
    lines,
    outcome_of,
    records_of,
    refusal_of,
    summary_of,
)


def completion(**fields: Any) -> bytes:
    return lines(fields)


GOOD = chat(USER, ASSISTANT)
GOOD_COMPLETION = completion(prompt="a", completion="b")

REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    # Not JSON lines at all.
    "plain_text": (b"Once upon a time\n", ("line 1", "not valid JSON", '{"messages"')),
    "pretty_array": (b"[\n" + GOOD + b"]", ("line 1", "one JSON array")),
    "array_in_one_line": (b"[" + GOOD.strip() + b"]", ("line 1", "array")),
    "byte_order_mark": (b"\xef\xbb\xbf" + GOOD, ("line 1", "byte-order mark", "UTF-8")),
    "utf_16": (GOOD.decode().encode("utf-16"), ("line 1", "byte 1", "UTF-16", "UTF-8")),
    "latin_1": (GOOD + '{"prompt": "é"}\n'.encode("latin-1"), ("line 2", "byte 13", "UTF-8")),
    "broken_json": (GOOD * 6 + b'{"messages": [{"role": \n', ("line 7", "not valid JSON")),
    "broken_json_after_blank_lines": (b"\n \n{bad\n", ("line 3", "not valid JSON")),
    "two_objects_in_a_line": (GOOD.strip() + GOOD, ("line 1", "trailing", "one JSON object a")),
    "not_a_number": (b'{"messages": NaN}\n', ("line 1", "not valid JSON")),
    "half_a_surrogate_pair": (b'{"prompt": "", "completion": "\\ud800"}\n', ("line 1",)),
    "number": (b"1\n", ("line 1", "a JSON object", "a number")),
    "null": (GOOD + b"null\n", ("line 2", "object", "null")),
    "nested_without_end": (GOOD + b"[" * 100_000, ("line 2", "nested deeper")),
    "line_too_long": (
        GOOD + completion(prompt="a", completion="x" * MAX_RECORD_BYTES),
        ("line 2", "longer than", f"{MAX_RECORD_BYTES:,}"),
    ),
    "first_line_too_long": (
        completion(prompt="a", completion="x" * MAX_RECORD_BYTES),
        ("line 1", "longer than", f"{MAX_RECORD_BYTES:,}"),
    ),
    "line_without_end": (b" " * (MAX_MEDIA_RECORD_BYTES + 2), ("line 1", "longer than")),
    # Not a record of a known kind.
    "no_known_key": (b'{"prompts": 1}\n', ("line 1", "'prompts'", "prompt, completion;")),
    "no_keys": (b"{}\n", ("line 1", "no keys", "prompt, completion;")),
    "chat_then_completion": (
        GOOD + GOOD_COMPLETION,
        ("line 2", "kind completion", "'prompt'", "kind chat", "one kind"),
    ),
    "completion_then_chat": (GOOD_COMPLETION + GOOD, ("line 2", "kind chat", "'messages'")),
    # Chat records.
    "messages_not_a_list": (b'{"messages": "x"}\n', ("line 1", "'messages'", "array", "str")),
    "messages_empty": (chat(), ("line 1", "'messages'", "empty", "assistant")),
    "message_not_an_object": (chat("x"), ("line 1", "'messages[0]'", "object")),
    "role_missing": (chat({"content": "a"}, ASSISTANT), ("line 1", "'messages[0].role'")),
    "role_unknown": (
        chat(USER, {"role": "bot", "content": "b"}),
        ("line 1", "'messages[1].role'", "'bot'", "assistant"),
    ),
    "content_missing": (chat({"role": "user"}, ASSISTANT), ("line 1", "'messages[0].content'")),
    "content_null": (chat(USER, ASSISTANT | {"content": None}), ("'messages[1].content'", "text")),
    "content_number": (chat(USER | {"content": 1}, ASSISTANT), ("'messages[0].content'", "int")),
    "image": (
        chat(USER | {"content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        ("line 1", "messages[0].content[0]", "image_url"),
    ),
    "no_assistant_turn": (
        chat(USER),
        ("line 1", "last message", "assistant", "'user'", "for reinforcement", "reference_answer"),
    ),
    "last_turn_of_the_user": (chat(ASSISTANT, USER), ("line 1", "last message", "'user'")),
    "weight_two": (
        chat(USER, ASSISTANT | {"weight": 2}),
        ("line 1", "'messages[1].weight': expected 0 or 1, found 2"),
    ),
    "weight_of_a_user": (chat(USER | {"weight": 1}, ASSISTANT), ("'messages[0].weight'",)),
    "tool_calls_of_a_user": (
        chat(USER | {"tool_calls": [{}]}, ASSISTANT),
        ("line 1", "'messages[0].tool_calls'"),
    ),
    "tools_of_another_type": (chat(USER, ASSISTANT, tools=[{"type": "x"}]), ("'tools[0]'",)),
    "tools_not_objects": (chat(USER, ASSISTANT, tools=["x"]), ("line 1", "'tools[0]'", "object")),
    "unknown_key": (chat(USER, ASSISTANT, extra=1), ("line 1", "unknown key 'extra'")),
    "unknown_key_of_a_message": (
        chat(USER | {"mood": 1}, ASSISTANT),
        ("line 1", "unknown key 'mood'", "messages[0]"),
    ),
    # Completion records.
    "completion_missing": (completion(prompt="a"), ("line 1", "'completion'", '"prompt"')),
    "completion_empty": (completion(prompt="a", completion=""), ("line 1", "'completion'")),
    "completion_number": (completion(prompt="a", completion=3), ("line 1", "'completion'", "int")),
    "prompt_null": (completion(prompt=None, completion="b"), ("line 1", "'prompt'", "null")),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_bad_line_is_refused_by_number_and_field(content: bytes, told: tuple[str, ...]) -> None:
    refusal = refusal_of(content)
    for words in told:
        assert words in refusal.message
    assert (refusal.param, refusal.code) == ("file", "invalid_record")


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\n\r\n"])
def test_a_file_without_records_is_told_apart(content: bytes) -> None:
    refusal = refusal_of(content)
    assert refusal.code == "empty_file"
    assert '{"messages"' in refusal.message


@pytest.mark.parametrize("levels", [33, 100, 400, 700, 990, 2_000, 50_000])
@pytest.mark.parametrize(
    "record_with",
    [
        lambda deep: chat(
            USER, ASSISTANT, tools=[{"type": "function", "function": {"parameters": deep}}]
        ),
        lambda deep: chat(USER, ASSISTANT | {"tool_calls": [{"function": deep}]}),
        lambda deep: chat(USER, ASSISTANT | {"function_call": {"arguments": deep}}),
    ],
    ids=["tools", "tool_calls", "function_call"],
)
def test_deep_nesting_is_refused_wherever_it_is(
    record_with: Callable[[Any], bytes], levels: int
) -> None:
    # Put together as text: Python's own encoder does not go this deep.
    content = record_with("deep").replace(b'"deep"', b"[" * levels + b"]" * levels)
    assert "nested deeper than 32 levels" in refusal_of(GOOD + content).message


@pytest.mark.parametrize(
    "content",
    [
        chat(USER | {"role": "x" * 100_000}, ASSISTANT),
        chat(USER | {"k" * 100_000: 1}, ASSISTANT),
        chat(USER, ASSISTANT, **{"k" * 100_000: 1}),
        chat(USER, ASSISTANT, **{" - at `$." + "k" * 100_000 + "`": 1}),
        chat(USER | {"content": [{"type": "t" * 100_000}]}, ASSISTANT),
        json.dumps({f"{number}" * 5_000: number for number in range(100)}).encode(),
        b"x" * 100_000,
    ],
    ids=["role", "message_key", "key", "key_like_a_path", "part_type", "no_known_key", "no_json"],
)
def test_a_refusal_shows_little_of_what_the_line_holds(content: bytes) -> None:
    assert len(refusal_of(content).message) <= MAX_MESSAGE_CHARACTERS


KNOWN_TEXT = st.sampled_from(
    ("messages", "role", "content", "user", "assistant", "weight", "tools", "prompt", "completion")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | KNOWN_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KNOWN_TEXT | st.text(), inner, max_size=5)
    ),
    max_leaves=12,
)
LINES = st.lists(JSON.map(lambda value: json.dumps(value).encode()), max_size=4).map(b"\n".join)


@given(st.binary(max_size=400) | LINES | LINES.map(lambda lines: GOOD + lines))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes) -> None:
    outcome = outcome_of(content)
    if not isinstance(outcome, InvalidFile):
        assert outcome.record_count >= 1


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=8))
def test_a_damaged_record_is_read_or_refused(position: int, damage: bytes) -> None:
    damaged = GOOD[:position] + damage + GOOD[position + len(damage) :]
    outcome = outcome_of(GOOD + damaged)
    if isinstance(outcome, InvalidFile):
        assert outcome.message.startswith("line ")
        assert not outcome.message.startswith("line 1:")


def test_a_dataset_is_summed_up() -> None:
    assert summary_of(GOOD * 3) == DatasetSummary("chat", 3)
    assert summary_of(GOOD_COMPLETION) == DatasetSummary("completion", 1)


def test_line_numbers_count_blank_lines() -> None:
    stream = io.BytesIO(GOOD + b"\n  \n" + GOOD)
    assert [number for number, _ in read_records(stream)] == [1, 4]


@pytest.mark.parametrize("content", [GOOD.strip(), GOOD.strip() + b"\r\n"])
def test_the_end_of_a_line_may_be_any(content: bytes) -> None:
    assert summary_of(content).record_count == 1


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    (record,) = records_of(chat(USER | {"content": parts}, ASSISTANT))
    assert isinstance(record, ChatRecord)
    assert record.messages[0].content == "one two"


def test_an_assistant_that_calls_a_tool_needs_no_content() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    caller = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "seen", "tool_call_id": "1"}
    (record,) = records_of(chat(USER, caller, result, ASSISTANT, tools=[TOOL]))
    assert isinstance(record, ChatRecord)
    assert record.messages[1].tool_calls == [call]
    assert record.tools == [TOOL]


def test_a_completion_keeps_its_text_as_it_is() -> None:
    (record,) = records_of(completion(prompt=" a\n", completion="\u00e9\u0000 "))
    assert record == CompletionRecord(prompt=" a\n", completion="\u00e9\u0000 ")


def test_messages_of_a_template_have_no_absent_field_and_no_weight() -> None:
    (record,) = records_of(chat(USER | {"name": "Ada"}, ASSISTANT | {"weight": 0}))
    assert as_template_messages(record) == [
        {"role": "user", "content": "a", "name": "Ada"},
        {"role": "assistant", "content": "b"},
    ]
