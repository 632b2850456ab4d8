"""The events of a response, made of chunks as an engine sends them."""

from typing import Any

from openai.types.responses import Response

from app.domain.errors import InvalidInput
from app.domain.responses.events import ResponseEvents
from app.domain.responses.requests import renamed


def test_calls_are_items_of_their_own() -> None:
    def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"model": "m", "choices": [choice]}

    def call(index: int, **function: Any) -> dict[str, Any]:
        return {"index": index, "function": function}

    events = ResponseEvents({"model": "m"}, "resp_1", 0)
    told = events.opening()
    for one in (
        chunk(content="I look."),
        chunk(tool_calls=[{"id": "c1", **call(0, name="weather", arguments="")}]),
        chunk(tool_calls=[call(0, arguments='{"city"')]),
        chunk(tool_calls=[call(0, arguments=': "Oslo"}')]),
        chunk(tool_calls=[{"id": "c2", **call(1, name="clock", arguments="{}")}]),
        chunk("length"),
    ):
        told += events.take(one)
    told += events.ending(1)
    types = [event["type"].removeprefix("response.") for event in told]
    of_a_call = ["output_item.added", "function_call_arguments.delta"]
    end_of_a_call = ["function_call_arguments.done", "output_item.done"]
    assert types[types.index("output_item.done") + 1 :] == [
        *of_a_call,
        "function_call_arguments.delta",
        *end_of_a_call,
        *of_a_call,
        *end_of_a_call,
        "incomplete",
    ]
    response = Response.model_validate(told[-1]["response"])
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    assert [item["arguments"] for item in told[-1]["response"]["output"][1:]] == [
        '{"city": "Oslo"}',
        "{}",
    ]


def test_what_an_engine_refuses_is_named_as_in_the_request() -> None:
    for param, here in (
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format", "text.format"),
        ("tools[1].function.parameters", "tools[1].parameters"),
        ("messages[0].content", "input[0].content"),
        ("max_completion_tokens", "max_output_tokens"),
        ("seed", "seed"),
    ):
        error = renamed(InvalidInput(f"'{param}' is wrong", param=param, code="c"))
        assert (error.param, error.message, error.code) == (here, f"'{here}' is wrong", "c")
