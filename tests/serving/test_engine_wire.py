"""Requests in OpenAI's format: what is accepted, and how what is not is named."""

from typing import Any

import msgspec
import pytest

from app.domain.errors import InvalidInput
from app.domain.unsupported_fields import CHAT_FIELDS
from worker.serving.body import parse
from worker.serving.settings import load_engine_settings
from worker.serving.submission import template_messages
from worker.serving.wire import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "hello"}]
# An object within that leaves open what properties it has.
INNER = {"a": {"type": "array", "items": {"type": "object", "properties": {}}}}


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, msgspec.json.encode({"model": "m", "messages": MESSAGES, **fields}))


def form(**changes: Any) -> dict[str, Any]:
    described = {"name": "city", "schema": {"type": "object"}, **changes}
    return {"type": "json_schema", "json_schema": described}


def strict(**changes: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
        **changes,
    }
    return form(schema=schema, strict=True)


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, msgspec.json.encode({"model": "m", "prompt": "p", **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"k": "v"}, "store": False, "service_tier": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"response_format": strict()},
        {"tools": None, "stop": None, "seed": None, "n": None},
        dict.fromkeys(CHAT_FIELDS),
        {"temperature": 1, "top_p": 0.5, "logit_bias": {"5": 1}, "stop": "a"},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_fields_that_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).messages == MESSAGES


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"best_of": 2}, "best_of"),
        ({"functions": []}, "functions"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": form(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": form(schema=None)}, "response_format.json_schema.schema"),
        ({"response_format": form(more=1)}, "response_format.json_schema.more"),
        ({"response_format": strict(type="array")}, "response_format.json_schema.schema"),
        ({"response_format": strict(required=[])}, "response_format.json_schema.schema"),
        ({"response_format": strict(properties=INNER)}, "response_format.json_schema.schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "a" * 1025}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"model": None}, "model"),
        ({"stream_options": {"include_usage": True, "more": 1}}, "stream_options.more"),
    ],
)
def test_fields_that_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert f"'{param}'" in refused.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "m", "temperature": NaN}'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse(ChatRequest, body)


def test_a_logit_bias_must_name_a_token() -> None:
    for key in ("-1", "a", "99", "9" * 5000):
        with pytest.raises(InvalidInput, match="below 99") as refused:
            chat(logit_bias={key: 1}).sampling(0, 99, None)
        assert refused.value.param == "logit_bias"


def test_each_choice_has_a_seed_of_its_own() -> None:
    asked = chat(seed=2**63 - 1, n=2)
    assert asked.sampling(0, 9, None).seed != asked.sampling(1, 9, None).seed
    assert chat(n=2).sampling(1, 9, None).seed is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_of_every_shape(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize("prompt", [[], [[]], [-1], 5, [1, "a"], ["a"] * 65])
def test_prompts_of_no_shape(prompt: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        completion(prompt=prompt)
    assert refused.value.param == "prompt"


def test_a_completion_of_no_tokens_needs_an_echo() -> None:
    with pytest.raises(InvalidInput, match="echo"):
        completion(max_tokens=0)
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    with pytest.raises(InvalidInput, match="suffix"):
        completion(suffix="s")


def test_messages_become_what_training_rendered() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template_messages(
        [
            {"role": "user", "content": parts, "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "refusal": None},
            {"role": "assistant", "content": "c", "audio": None, "annotations": []},
        ]
    ) == [
        {"role": "user", "content": "ab", "name": "n"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "a"}, "messages[0].role"),
        ({"content": "a"}, "messages[0]"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": "a", "audio": {}}, "messages[0].audio"),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        template_messages([message])
    assert refused.value.param == param


def test_settings_name_the_variable_at_fault() -> None:
    for name in ("ENGINE_PORT", "ENGINE_MAX_RUNNING", "ENGINE_GRACE_SECONDS"):
        with pytest.raises(InvalidInput, match=name):
            load_engine_settings({name: "many"})
    with pytest.raises(InvalidInput, match="ADAPTER_ROOT"):
        load_engine_settings({"STORAGE_URL": "s3://bucket"})
    assert load_engine_settings({"ENGINE_PRELOAD": "a, b"}).preload == ("a", "b")
