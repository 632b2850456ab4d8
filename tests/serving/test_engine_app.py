"""The engine's HTTP surface, in process: OpenAI's wire and vLLM's adapter calls."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx

from tests.serving.conftest import RunScenario
from worker.serving.engine import Engine
from worker.trunk.listing import write_listing
from worker.trunk.trunk import Trunk

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "smollm2-135m", "messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    return {**body, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    body = {"model": "smollm2-135m", "prompt": "The capital of", "temperature": 0, "max_tokens": 4}
    return {**body, **fields}


async def answer(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    decoded: dict[str, Any] = response.json()
    return decoded


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    response = await client.post(path, json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def refusal(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int
) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_whole_chat_answer(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = chat(n=2, logprobs=True, top_logprobs=2)
        got = await answer(client, "/v1/chat/completions", body)
        assert got["id"].startswith("chatcmpl-")
        assert got["object"] == "chat.completion"
        assert isinstance(got["created"], int)
        assert got["model"] == "smollm2-135m"
        assert got["system_fingerprint"].startswith("fp_")
        assert [choice["index"] for choice in got["choices"]] == [0, 1]
        for choice in got["choices"]:
            message = choice["message"]
            assert message == {
                "role": "assistant",
                "content": "The capital of France is Paris",
                "refusal": None,
            }
            assert choice["finish_reason"] == "length"
            tokens = choice["logprobs"]["content"]
            assert "".join(token["token"] for token in tokens) == message["content"]
            for token in tokens:
                assert bytes(token["bytes"]).decode() == token["token"]
                assert token["top_logprobs"][0] == {
                    key: token[key] for key in ("token", "bytes", "logprob")
                }
                assert len(token["top_logprobs"]) == 2
        usage = got["usage"]
        assert usage["completion_tokens"] == 12
        assert usage["total_tokens"] == usage["prompt_tokens"] + 12

    with_engine(scenario)


def test_a_streamed_chat_answer_is_the_whole_one(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = chat(max_tokens=20, logprobs=True)
        whole = await answer(client, "/v1/chat/completions", body)
        *chunks, done = await events(
            client, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
        )
        assert done == "[DONE]"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        first, *texts, last, usage = chunks
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        (choice,) = whole["choices"]
        parts = [chunk["choices"][0] for chunk in texts]
        assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
        tokens = [token for part in parts for token in part["logprobs"]["content"]]
        assert [t["token"] for t in tokens] == [t["token"] for t in choice["logprobs"]["content"]]
        assert {part["finish_reason"] for part in (*parts, first["choices"][0])} == {None}
        assert last["choices"][0]["delta"] == {}
        assert last["choices"][0]["finish_reason"] == choice["finish_reason"] == "stop"
        assert usage["choices"] == []
        # What the whole answer has left behind is all of the same prompt but its last token.
        cached = {"cached_tokens": whole["usage"]["prompt_tokens"] - 1}
        assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert usage["usage"] == {**whole["usage"], "prompt_tokens_details": cached}
        assert all(chunk["usage"] is None for chunk in chunks[:-1])

        without_usage = await events(client, "/v1/chat/completions", chat(n=2, max_tokens=2))
        assert not any("usage" in chunk for chunk in without_usage[:-1])
        ends = [chunk["choices"][0] for chunk in without_usage[:-1]]
        assert sorted(c["index"] for c in ends if c["finish_reason"]) == [0, 1]

    with_engine(scenario)


def test_completions_of_every_kind_of_prompt(with_engine: RunScenario, trunk: Trunk) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        ids = trunk.tokenizer.encode("The capital of", add_special_tokens=False)
        one = await answer(client, "/v1/completions", completion())
        assert one["id"].startswith("cmpl-")
        assert one["object"] == "text_completion"
        (choice,) = one["choices"]
        assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
        assert choice["logprobs"] is None
        for prompt in (["The capital of", "1, 2, 3,"], [ids, ids]):
            got = await answer(client, "/v1/completions", completion(prompt=prompt, n=2))
            assert [c["index"] for c in got["choices"]] == [0, 1, 2, 3]
            assert [c["text"] for c in got["choices"][:2]] == [choice["text"]] * 2
        by_ids = await answer(client, "/v1/completions", completion(prompt=ids))
        assert by_ids["choices"][0]["text"] == choice["text"]
        assert by_ids["usage"]["total_tokens"] == one["usage"]["total_tokens"]

    with_engine(scenario)


def test_an_echo_with_logprobs_scores_the_prompt(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = completion(echo=True, logprobs=3, max_tokens=2)
        (choice,) = (await answer(client, "/v1/completions", body))["choices"]
        assert choice["text"].startswith("The capital of")
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
        assert all(len(top) in (3, 4) for top in logprobs["top_logprobs"][1:])
        for name, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(name)

        *chunks, _ = await events(client, "/v1/completions", body)
        streamed = [chunk["choices"][0] for chunk in chunks]
        assert "".join(part["text"] for part in streamed) == choice["text"]
        offsets = [o for part in streamed for o in part["logprobs"]["text_offset"]]
        assert offsets == logprobs["text_offset"]

        scored = await answer(client, "/v1/completions", {**body, "max_tokens": 0})
        assert scored["choices"][0]["text"] == "The capital of"
        assert scored["usage"]["completion_tokens"] == 0
        plain = await answer(client, "/v1/completions", completion(echo=True))
        assert plain["choices"][0]["text"].startswith("The capital of")

    with_engine(scenario)


def test_requests_that_are_refused(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        path = "/v1/chat/completions"
        error = await refusal(client, path, chat(frobnicate=1), 400)
        assert error["param"] == "frobnicate"
        assert error["type"] == "invalid_request_error"
        assert (await refusal(client, path, chat(model="gpt-9"), 404))["code"] == "model_not_found"
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        assert "tools" in (await refusal(client, path, chat(tools=tools), 400))["message"]
        assert "choices" in await answer(client, path, chat(tools=tools, tool_choice="none"))

        long = [{"role": "user", "content": "word " * 2100}]
        error = await refusal(client, path, chat(messages=long), 400)
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "2048" in error["message"]
        for name in ("max_tokens", "max_completion_tokens"):
            error = await refusal(client, path, {**chat(max_tokens=None), name: 2040}, 400)
            assert (error["param"], error["code"]) == (name, "context_length_exceeded")
            assert "2040" in error["message"]

        path = "/v1/completions"
        assert (await refusal(client, path, completion(prompt=""), 400))["param"] == "prompt"
        assert (await refusal(client, path, completion(prompt=[49152]), 400))["param"] == "prompt"
        many = completion(prompt=["a"] * 64, n=16)
        assert (await refusal(client, path, many, 400))["param"] == "n"
        await refusal(client, "/v1/nowhere", {}, 404)
        await refusal(client, "/health", {}, 405)

    with_engine(scenario)


def test_an_adapter_is_loaded_served_and_unloaded(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        name = "ft:smollm2-135m:org::abc"
        await refusal(client, "/v1/chat/completions", chat(model=name), 404)
        body = {"lora_name": name, "lora_path": "red/adapter"}
        for _ in range(2):
            response = await client.post(load, json=body)
            assert (response.status_code, response.text[:7]) == (200, "Success")
        error = await refusal(client, load, {**body, "lora_path": "blue"}, 400)
        assert error["param"] == "lora_name"
        error = await refusal(client, load, {"lora_name": "x", "lora_path": "/etc"}, 400)
        assert error["param"] == "lora_path"
        base_name = {"lora_name": "smollm2-135m", "lora_path": "blue"}
        assert (await refusal(client, load, base_name, 400))["param"] == "lora_name"

        ours = await answer(client, "/v1/chat/completions", chat(model=name, logprobs=True))
        base = await answer(client, "/v1/chat/completions", chat(logprobs=True))
        assert ours["model"] == name
        assert ours["system_fingerprint"] != base["system_fingerprint"]
        assert ours["choices"][0]["logprobs"] != base["choices"][0]["logprobs"]

        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["smollm2-135m", name]
        assert models["data"][1]["parent"] == "smollm2-135m"
        assert (await client.post(unload, json={"lora_name": name})).status_code == 200
        await refusal(client, unload, {"lora_name": name}, 404)
        await refusal(client, "/v1/chat/completions", chat(model=name), 404)

    with_engine(scenario)


def test_the_template_that_an_adapter_was_trained_with_is_its_own(
    with_engine: RunScenario, adapter_root: Path
) -> None:
    directory = adapter_root / "red" / "adapter"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["chat_template_sha256"] = hashlib.sha256(template.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "chat_template.jinja").write_text(template)
    (directory.parent / "files.json").unlink()
    write_listing(directory.parent)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = {"lora_name": "red", "lora_path": "red/adapter"}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        own = await answer(client, "/v1/chat/completions", chat(model="red", max_tokens=1))
        base = await answer(client, "/v1/chat/completions", chat(max_tokens=1))
        assert own["usage"]["prompt_tokens"] < 10 < base["usage"]["prompt_tokens"]

    with_engine(scenario)


def test_a_failure_in_a_stream_is_its_last_event_and_harms_no_other(
    with_engine: RunScenario,
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = {"lora_name": "broken", "lora_path": "broken"}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        path = "/v1/chat/completions"
        good, streamed, error = await asyncio.gather(
            answer(client, path, chat()),
            events(client, path, chat(model="broken")),
            refusal(client, path, chat(model="broken"), 500),
        )
        assert good["choices"][0]["message"]["content"] == "The capital of France is Paris"
        assert streamed[-1]["error"] == error
        assert (error["code"], error["type"]) == ("generation_failed", "server_error")
        assert (await client.get("/health")).status_code == 200

    with_engine(scenario)


def test_a_full_queue_asks_to_come_back(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        error = await refusal(client, "/v1/completions", completion(n=3), 400)
        assert (error["param"], error["code"]) == ("n", "invalid_value")
        both = asyncio.create_task(
            client.post("/v1/completions", json=completion(n=2, max_tokens=12))
        )
        while (await client.get("/v1/engine/stats")).json()["running"] < 1:
            await asyncio.sleep(0)
        response = await client.post("/v1/completions", json=completion())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert (await both).status_code == 200
        await answer(client, "/v1/completions", completion(n=2, max_tokens=1))

    with_engine(scenario, max_running=1, max_queued=1)


def test_a_request_that_outgrows_the_memory_is_refused_by_its_field(
    with_engine: RunScenario,
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        error = await refusal(client, "/v1/completions", completion(max_tokens=60), 400)
        assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
        # Without a number the answer may be as long as there is room for.
        free = await answer(client, "/v1/chat/completions", chat(max_tokens=None, stop="Paris"))
        assert free["choices"][0]["finish_reason"] == "stop"
        assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] == 60

    with_engine(scenario, kv_tokens=60)


def test_a_priority_that_is_none_is_refused_by_its_header(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        for path, body in (("/v1/completions", completion()), ("/v1/embeddings", {})):
            headers = {"x-tunesmith-project": "proj_1", "x-tunesmith-priority": "urgent"}
            response = await client.post(path, json=body, headers=headers)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "x-tunesmith-priority"
        headers["x-tunesmith-priority"] = "low"
        response = await client.post("/v1/completions", json=completion(), headers=headers)
        assert response.status_code == 200

    with_engine(scenario)


def test_a_key_opens_everything_but_health_needs_none(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        assert (await client.get("/health")).json() == {}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            response = await client.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        response = await client.get("/v1/models", headers={"authorization": "Bearer secret"})
        assert response.json() == {"object": "list", "data": []}

    with_engine(scenario, api_key="secret")


def test_a_body_beyond_the_limit_is_not_read(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await refusal(client, "/v1/completions", completion(prompt="a" * 2000), 413)

    with_engine(scenario, max_body_bytes=1000)


def test_a_loop_that_has_ended_shows_in_health(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        (await engine.resolve("smollm2-135m")).base.loop.close()
        response = await client.get("/health")
        assert response.status_code == 503
        await refusal(client, "/v1/chat/completions", chat(), 503)

    with_engine(scenario, preload=("smollm2-135m",))
