"""Batches over the wire, with OpenAI's own client; the engine is a fake one."""

import json
import secrets
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Batch

from tests.conftest import INSTALLATIONS
from tests.support.batching import (
    CHAT,
    as_input,
    chat_line,
    content_of,
    create,
    refuse_lost_and_doubled,
    results_of,
    upload,
    wait_until,
)
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ENCODER, REFUSE, REFUSE_AT_FIRST, SAY, SLOW, FakeEngine
from tests.support.polling import eventually
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of, strict, strict_list

# What no database changes is tried on one of them.
on_one = pytest.mark.parametrize("api", INSTALLATIONS[:1], indirect=True, scope="session")

TIMES = {
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
}


def test_a_batch_is_answered_line_by_line(client: OpenAI, fake_engine: FakeEngine) -> None:
    asked = [chat_line(f"line {number}", f"{SAY}{number}") for number in range(40)]
    batch = create(client, asked, metadata={"night": "1"})
    assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", CHAT, "24h")
    assert batch.metadata == {"night": "1"}
    assert (batch.expires_at or 0) - batch.created_at in (86_400, 86_401)
    ended = wait_until(client, batch, {"completed"})
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 40, "completed": 40, "failed": 0}
    assert ended.model == BASE_MODEL
    assert (ended.errors, ended.error_file_id) == (None, None)
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (40 * 9, 40 * 4)
    given = {name for name in TIMES if getattr(ended, name) is not None}
    assert given == {"in_progress_at", "finalizing_at", "completed_at"}
    lines = content_of(client, ended.output_file_id)
    assert [one["custom_id"] for one in lines] == [one["custom_id"] for one in asked]
    for number, line in enumerate(lines):
        assert line.keys() == {"id", "custom_id", "response", "error"}
        assert line["id"].startswith("batch_req_")
        assert line["error"] is None
        response = line["response"]
        assert response.keys() == {"status_code", "request_id", "body"}
        assert response["status_code"] == 200
        assert response["request_id"].startswith("req_")
        assert response["body"]["object"] == "chat.completion"
        assert response["body"]["choices"][0]["message"]["content"] == str(number)
    assert len({one["id"] for one in lines}) == 40
    assert fake_engine.callers[-1][1] == "low"


@on_one
def test_the_object_is_openais(client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client, [chat_line("a", "hello")])
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    made = strict(http.post("/v1/batches", json=body), Batch)
    ended = wait_until(client, made, {"completed"})
    answer = http.get(f"/v1/batches/{made.id}")
    assert strict(answer, Batch).model_dump() == ended.model_dump()
    assert answer.json().keys() == Batch.model_fields.keys()
    keys = {"first_id", "last_id", "has_more"}
    (listed,) = strict_list(http.get("/v1/batches"), Batch, keys=keys)
    assert listed.id == made.id
    output = client.files.retrieve(ended.output_file_id or "")
    assert (output.purpose, output.status) == ("batch_output", "processed")
    assert output.filename == f"{made.id}_output.jsonl"
    assert client.files.retrieve(file_id).purpose == "batch"
    assert [one.id for one in client.files.list(purpose="batch_output")] == [output.id]


def test_pages_go_through_all_batches(client: OpenAI) -> None:
    file_id = upload(client, [chat_line("a", "hello")])
    made = [
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h").id
        for _ in range(5)
    ]
    assert [one.id for one in client.batches.list(limit=2)] == made[::-1]


@on_one
def test_errors_of_requests_are_in_a_file_of_their_own(client: OpenAI) -> None:
    asked = [
        chat_line("good", f"{SAY}yes"),
        chat_line("bad", f"{REFUSE}400"),
        chat_line("busy", f"{REFUSE_AT_FIRST}429 {secrets.token_hex(4)}"),
        chat_line("ill", f"{REFUSE_AT_FIRST}503 {secrets.token_hex(4)}"),
    ]
    ended = wait_until(client, create(client, asked), {"completed"})
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 4, "completed": 3, "failed": 1}
    # What the engine had no room for, or failed at, was asked again.
    answered = [one["custom_id"] for one in content_of(client, ended.output_file_id)]
    assert answered == ["good", "busy", "ill"]
    (line,) = content_of(client, ended.error_file_id)
    assert (line["custom_id"], line["error"]) == ("bad", None)
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"] == {
        "message": "refused with 400",
        "type": "invalid_request_error",
        "param": "seed",
        "code": None,
    } | {"code": line["response"]["body"]["error"]["code"]}


@on_one
@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"model": BASE_MODEL, "prompt": "hello"}, "text_completion"),
        ("/v1/embeddings", {"model": ENCODER, "input": "hello"}, "list"),
        ("/v1/score", {"model": ENCODER, "text_1": "hello", "text_2": "hi"}, "list"),
        ("/v1/responses", {"model": BASE_MODEL, "input": "hello"}, "response"),
    ],
)
def test_other_endpoints_take_batches(
    client: OpenAI, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    ended = wait_until(client, create(client, [line], endpoint), {"completed"})
    (answer,) = content_of(client, ended.output_file_id)
    assert answer["response"]["body"]["model"] == body["model"]
    assert answer["response"]["body"]["object"] == kind
    assert ended.usage is not None
    assert ended.usage.input_tokens == 9


@on_one
def test_a_fine_tuned_model_answers_beside_its_base(api: Service, client: OpenAI, key: str) -> None:
    tuned = serve_adapter(api, key).name
    asked = [chat_line("base", "hello"), chat_line("tuned", "hello", model=tuned)]
    ended = wait_until(client, create(client, asked), {"completed"})
    models = [one["response"]["body"]["model"] for one in content_of(client, ended.output_file_id)]
    assert models == [BASE_MODEL, tuned]
    assert ended.model is None


@on_one
def test_predictions_and_aliases_take_batches(
    api: Service, client: OpenAI, http: httpx.Client, key: str
) -> None:
    model = serve_adapter(api, key, task="text-classification").name
    alias = {"name": "sorter", "targets": [{"model": model, "weight": 1}]}
    assert http.post("/v1/aliases", json=alias).status_code == 200
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/predictions",
            "body": {"model": name, "inputs": ["good", "bad"]},
        }
        for name in (model, "sorter")
    ]
    ended = wait_until(client, create(client, lines, "/v1/predictions"), {"completed"})
    bodies = [one["response"]["body"] for one in content_of(client, ended.output_file_id)]
    assert [len(body["predictions"]) for body in bodies] == [2, 2]
    assert {body["model"] for body in bodies} == {model}
    assert ended.usage is not None
    assert ended.usage.input_tokens == 18


MISTAKES: list[tuple[Any, str, str | None]] = [
    ("{", "invalid_json_line", None),
    ("[1]", "invalid_json_line", None),
    ('{"custom_id": "\\ud83d"}', "invalid_value", None),
    ({"a\x00b": 1}, "unknown_field", "a\\x00b"),
    ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_field", "custom_id"),
    (chat_line("", "x"), "invalid_value", "custom_id"),
    (chat_line("a", "x") | {"method": "GET"}, "invalid_value", "method"),
    (chat_line("a", "x") | {"url": "/v1/completions"}, "invalid_url", "url"),
    (chat_line("a", "x") | {"headers": {}}, "unknown_field", "headers"),
    (chat_line("a", "x") | {"body": "x"}, "invalid_value", "body"),
    (chat_line("a", "x", temperature=3), "invalid_value", "body.temperature"),
    (chat_line("a", "x", messages=[{"role": "king"}]), "invalid_value", "body.messages[0].role"),
    (chat_line("a", "x", wibble=1), "unknown_field", "body.wibble"),
    (chat_line("a", "x", stream=True), "unsupported_value", "body.stream"),
    (chat_line("a", "x", model="gpt-9"), "model_not_found", "body.model"),
    (chat_line("a", "x", model=ENCODER), "wrong_route", "body.model"),
    (chat_line("good", "x"), "duplicate_custom_id", "custom_id"),
]


def test_what_is_wrong_is_told_by_line_before_anything_runs(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    lines = [json.dumps(chat_line("good", "never asked"))] + [
        one if isinstance(one, str) else json.dumps(one) for one, _, _ in MISTAKES
    ]
    batch = create(client, "\n\n".join(lines).encode())
    failed = wait_until(client, batch, {"failed"})
    assert failed.errors is not None
    assert failed.errors.object == "list"
    told = failed.errors.data or []
    duplicates = [one for one in told if one.code == "duplicate_custom_id"]
    # All the lines above that are named "a" are wrong themselves, or repeat one that is not.
    assert {one.line for one in duplicates} >= {2 * len(MISTAKES) + 1}
    for number, (_, code, param) in enumerate(MISTAKES, 1):
        of_line = [one for one in told if one.line == 2 * number + 1]
        assert (code, param) in [(one.code, one.param) for one in of_line], (number, of_line)
        assert all(one.message for one in of_line)
    assert not any(one.line == 1 for one in told)
    assert failed.failed_at is not None
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert not any("never asked" in json.dumps(one) for one in fake_engine.requests)


@on_one
def test_an_empty_file_fails(client: OpenAI) -> None:
    failed = wait_until(client, create(client, b"\n \n"), {"failed"})
    assert failed.errors is not None
    assert [one.code for one in failed.errors.data or []] == ["empty_file"]


@on_one
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": ""}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, None),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_wrong_field_is_named(
    http: httpx.Client, client: OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"} | fields
    error = error_of(http.post("/v1/batches", json=body), 400)
    assert error["param"] == (param or "output_expires_after.seconds")


@on_one
def test_only_a_file_of_requests_is_taken(client: OpenAI) -> None:
    line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file_id = client.files.create(file=("train.jsonl", as_input([line])), purpose="fine-tune").id
    with pytest.raises(BadRequestError, match="purpose 'fine-tune'"):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(NotFoundError, match="No such file"):
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")


def test_cancelling_keeps_what_is_done(client: OpenAI, fake_engine: FakeEngine) -> None:
    asked = [chat_line("quick", f"{SAY}done"), chat_line("slow", SLOW)]
    batch = create(client, asked)
    eventually(
        lambda: (
            client.batches.retrieve(batch.id).to_dict()["request_counts"]
            == {"total": 2, "completed": 1, "failed": 0}
        ),
        what="the quick one is answered",
    )
    with pytest.raises(BadRequestError, match="has not ended"):
        client.files.delete(batch.input_file_id)
    fake_engine.disconnected.clear()
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    ended = wait_until(client, batch, {"cancelled"}, within_seconds=15)
    assert fake_engine.disconnected.wait(15)
    assert ended.cancelling_at is not None
    assert ended.cancelled_at is not None
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    (line,) = content_of(client, ended.output_file_id)
    assert line["custom_id"] == "quick"
    (line,) = content_of(client, ended.error_file_id)
    assert (line["custom_id"], line["response"]) == ("slow", None)
    assert line["error"]["code"] == "batch_cancelled"
    with pytest.raises(BadRequestError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_what_is_unanswered_in_time_is_told(api: Service, client: OpenAI) -> None:
    asked = [chat_line(f"slow {number}", SLOW) for number in range(20)]
    batch = create(client, [chat_line("quick", "x"), *asked])
    eventually(
        lambda: (
            (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed == 1
        ),
        what="the quick one is answered",
    )
    with api.database() as database, database.write() as connection:
        connection.exec_driver_sql(f"UPDATE batches SET expires_at = 1 WHERE id = '{batch.id}'")
    ended = wait_until(client, batch, {"expired"})
    assert ended.expired_at is not None
    errors = content_of(client, ended.error_file_id)
    assert {one["error"]["code"] for one in errors} == {"batch_expired"}
    refuse_lost_and_doubled(
        ["quick", *(one["custom_id"] for one in asked)], results_of(client, ended)
    )


@on_one
def test_a_project_with_much_to_do_leaves_room_for_others(
    api: Service, client: OpenAI, shared_client: OpenAI
) -> None:
    slow = [chat_line(f"{number}", SLOW) for number in range(60)]
    long, next_long = create(client, slow), create(client, slow)
    wait_until(client, long, {"in_progress"})
    other = shared_client.with_options(api_key=api.new_key(project=secrets.token_hex(4)))
    ended = wait_until(other, create(other, [chat_line("a", "hello")]), {"completed"})
    assert ended.request_counts is not None
    for batch in (long, next_long):
        client.batches.cancel(batch.id)
        wait_until(client, batch, {"cancelled"})


@on_one
def test_a_repetition_under_a_key_makes_one(http: httpx.Client, client: OpenAI) -> None:
    body = {
        "input_file_id": upload(client, [chat_line("a", "x")]),
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    headers = {"idempotency-key": "a"}
    first, again = (http.post("/v1/batches", json=body, headers=headers) for _ in range(2))
    assert again.content == first.content
    assert len(list(client.batches.list())) == 1


@on_one
def test_files_of_results_expire_when_told_to(client: OpenAI) -> None:
    batch = create(
        client,
        [chat_line("a", "x")],
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    ended = wait_until(client, batch, {"completed"})
    output = client.files.retrieve(ended.output_file_id or "")
    assert (output.expires_at or 0) - output.created_at in (3_600, 3_601)
