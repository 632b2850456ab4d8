"""Responses over the wire, by the client's own methods; a fake engine answers as vLLM does."""

import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall

from tests.conftest import INSTALLATIONS
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ANSWER, DIE, FakeEngine
from tests.support.wire import error_of, strict

TEXT = "".join(ANSWER)

# No database has a part in it.
pytestmark = pytest.mark.parametrize("api", INSTALLATIONS[:1], indirect=True, scope="session")

FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(autouse=True)
def quiet_engine(fake_engine: FakeEngine) -> None:
    fake_engine.requests.clear()


def test_a_text_is_responded_to(client: OpenAI) -> None:
    answer = client.responses.with_raw_response.create(
        model=BASE_MODEL,
        input="hello",
        instructions="Be brief.",
        max_output_tokens=5,
        temperature=0,
        metadata={"case": "7"},
        user="anna",
    )
    response = strict(answer, Response)
    assert response.output_text == TEXT
    assert (response.status, response.id[:5], response.model) == ("completed", "resp_", BASE_MODEL)
    assert (response.instructions, response.max_output_tokens) == ("Be brief.", 5)
    assert (response.temperature, response.top_p, response.user) == (0, 1, "anna")
    assert response.metadata == {"case": "7"}
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + len(ANSWER)
    assert json.loads(answer.content)["store"] is False


def test_a_conversation_reaches_the_engine_as_a_chat(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    client.responses.create(
        model=BASE_MODEL,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Rain in Oslo?"}]},
            {"type": "message", "role": "assistant", "content": "I look."},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
            {"role": "user", "content": "hello"},
        ],
        tools=[FUNCTION],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "weather"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        max_output_tokens=3,
        store=False,
    )
    (asked,) = fake_engine.requests
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert asked == {
        "model": BASE_MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain in Oslo?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
            {"role": "user", "content": "hello"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "parameters": FUNCTION["parameters"]},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
        "max_completion_tokens": 3,
    }


def test_a_response_goes_on_as_the_client_dumps_it(client: OpenAI, fake_engine: FakeEngine) -> None:
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    response = client.responses.create(model=BASE_MODEL, input=asked)
    asked += [item.model_dump() for item in response.output]
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    called = ResponseFunctionToolCall.model_validate(call)
    asked += [called.model_dump(), called.model_dump(by_alias=True) | {"call_id": "c2"}]
    client.responses.create(model=BASE_MODEL, input=asked)
    *_, chat = fake_engine.requests
    _, message = chat["messages"]
    assert message["content"] == TEXT
    assert [made["id"] for made in message["tool_calls"]] == ["c1", "c2"]


def test_a_response_is_streamed_as_its_events(client: OpenAI) -> None:
    events = list(client.responses.create(model=BASE_MODEL, input="hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(ANSWER),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    with client.responses.stream(model=BASE_MODEL, input="hello") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == TEXT
    assert final.usage is not None


def test_an_answer_that_breaks_off_is_a_failed_response(client: OpenAI) -> None:
    *_, last = client.responses.create(model=BASE_MODEL, input=DIE, stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"


def test_a_streamed_response_is_made_once_for_a_key(http: httpx.Client) -> None:
    body = {"model": BASE_MODEL, "input": "hello", "stream": True}
    headers = {"Idempotency-Key": "response-1"}
    first, again = (http.post("/v1/responses", json=body, headers=headers) for _ in range(2))
    assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]"),
        (
            {"input": [{"role": "assistant", "content": "a", "phase": "commentary"}]},
            "input[0].phase",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            "input[0].call_id",
        ),
    ],
)
def test_what_needs_a_memory_or_is_not_here_is_refused_by_name(
    http: httpx.Client, fake_engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/responses", json={"model": BASE_MODEL, "input": "hello", **fields})
    assert error_of(answer, 400)["param"] == param
    assert fake_engine.requests == []


def test_what_the_engine_refuses_is_named_as_here(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.responses.create(model=BASE_MODEL, input="refuse with status 400")
    assert refused.value.param == "seed"
