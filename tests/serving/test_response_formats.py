"""Answers that have to have a form: `response_format` of chat completions, on a real model."""

import json
from typing import Any

import httpx
import pytest

from app.domain.errors import InvalidInput
from tests.serving.conftest import RunScenario
from tests.serving.test_engine_app import answer, chat, events, refusal
from worker.serving.body import parse
from worker.serving.engine import Engine
from worker.serving.wire import ChatRequest

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "kind": {"enum": ["capital", "town"]},
        "found": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2},
    },
    "required": ["city", "kind", "found"],
    "additionalProperties": False,
}


def described(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, **more}}


def test_answers_follow_a_schema_whole_and_streamed(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        load = {"lora_name": "red", "lora_path": "red/adapter"}
        assert (await client.post("/v1/load_lora_adapter", json=load)).status_code == 200
        form = described(CITY, strict=True)
        for model in ("smollm2-135m", "red"):
            asked = chat(
                model=model, max_tokens=60, n=2, temperature=1.2, seed=4, response_format=form
            )
            whole = await answer(client, "/v1/chat/completions", asked)
            said = [choice["message"]["content"] for choice in whole["choices"]]
            for text in said:
                city = json.loads(text)
                assert list(city) == ["city", "kind", "found"]
                assert city["kind"] in ("capital", "town")
            *chunks, _ = await events(client, "/v1/chat/completions", asked)
            streamed = ["", ""]
            for choice in (chunk["choices"][0] for chunk in chunks):
                streamed[choice["index"]] += choice["delta"].get("content", "")
            assert streamed == said
            assert {choice["finish_reason"] for choice in whole["choices"]} == {"stop"}

    with_engine(scenario)


def test_any_object_is_one_and_can_be_cut(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = chat(response_format={"type": "json_object"}, max_tokens=3)
        (choice,) = (await answer(client, "/v1/chat/completions", asked))["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"].lstrip().startswith("{")

    with_engine(scenario)


def test_schemas_that_cannot_be_kept_are_refused(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        for schema in ({"type": "object", "not": {}}, {"type": "string", "format": "phone"}):
            asked = chat(response_format=described(schema))
            error = await refusal(client, "/v1/chat/completions", asked, 400)
            assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
            assert "response_format" in error["message"]

    with_engine(scenario)


@pytest.mark.parametrize("wrong", [{"properties": 5}, {"required": 5}, {"required": [{}]}])
def test_a_strict_schema_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    body = chat(response_format=described(CITY | wrong, strict=True))

    with pytest.raises(InvalidInput, match="where 'strict' is true"):
        parse(ChatRequest, json.dumps({"model": "any", **body}).encode())
