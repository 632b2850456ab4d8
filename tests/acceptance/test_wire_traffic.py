"""What versions answered, as the API counts and compares it; a fake engine answers."""

from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.acceptance.test_wire_aliases import CHAT, HELLO, create, point
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ANSWER, DIE, REFUSE, SLOW
from tests.support.polling import eventually
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of

FEEDBACK = "/v1/feedback"


@pytest.fixture
def pair(api: Service, key: str) -> list[str]:
    return [serve_adapter(api, key).name for _ in range(2)]


def usage_of(http: httpx.Client, requests: int) -> list[dict[str, Any]]:
    """Return what was counted, once it is written that so many requests were."""

    def look() -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = http.get("/v1/usage").json()["data"]
        return data if sum(one["requests"] for one in data) >= requests else []

    return eventually(look, what=f"{requests} requests are counted")


def report_of(http: httpx.Client, requests: int, **parameters: Any) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        answer = http.get("/v1/aliases/support-bot/report", params=parameters)
        told: dict[str, Any] = answer.json()
        is_complete = sum(one["requests"] for one in told["versions"]) >= requests
        return told if is_complete else None

    return eventually(look, what=f"{requests} requests are reported") or {}


def chat(http: httpx.Client, model: str, prompt: str = "hello", **more: Any) -> httpx.Response:
    messages = [{"role": "user", "content": prompt}]
    return http.post(CHAT, json={"model": model, "messages": messages, **more})


def test_counts_are_what_was_sent(http: httpx.Client, client: OpenAI, pair: list[str]) -> None:
    create(http, pair[:1])
    sent: Counter[str | None] = Counter()
    for name, model in (("support-bot", "support-bot"), (None, BASE_MODEL)):
        for _ in range(3):
            assert chat(http, model).status_code == 200
        chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
        assert [chunk.usage for chunk in chunks] == [None] * len(ANSWER)
        assert client.completions.create(model=model, prompt="x").usage
        error_of(chat(http, model, f"{REFUSE}400"), 400)
        error_of(chat(http, model, f"{REFUSE}429"), 429)
        error_of(chat(http, model, f"{REFUSE}500"), 503)
        error_of(chat(http, model, DIE), 503)
        assert b"error" in chat(http, model, DIE, stream=True).content
        with suppress(httpx.TimeoutException):
            http.post(
                CHAT,
                json={"model": model, "messages": [{"role": "user", "content": SLOW}]},
                timeout=0.5,
            )
        sent[name] = 11
    counted = {one["alias"]: one for one in usage_of(http, 22)}
    assert {name: one["requests"] for name, one in counted.items()} == sent
    for one in counted.values():
        outcomes = {name: one[name] for name in ("answered", "refused", "failed", "cancelled")}
        assert outcomes == {"answered": 5, "refused": 2, "failed": 3, "cancelled": 1}
        assert (one["prompt_tokens"], one["completion_tokens"]) == (5 * 9, 5 * len(ANSWER))
        assert one["latency_seconds"]["count"] == 5
        assert one["first_token_seconds"]["count"] == 1
        assert 0 < one["first_token_seconds"]["p50"] < 30
    assert (counted["support-bot"]["model"], counted["support-bot"]["revision"]) == (pair[0], 1)
    assert (counted[None]["model"], counted[None]["revision"]) == (BASE_MODEL, None)
    # What never reached a model is not counted: the negative control.
    error_of(chat(http, "ft:not:there::x"), 404)
    error_of(http.post("/v1/predictions", json={"model": "support-bot", "inputs": "x"}), 400)
    assert chat(http, BASE_MODEL).status_code == 200
    assert sum(one["requests"] for one in usage_of(http, 23)) == 23
    only = http.get("/v1/usage", params={"model": pair[0]}).json()["data"]
    assert [one["model"] for one in only] == [pair[0]]


def test_usage_that_is_asked_for_is_streamed(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=BASE_MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER)


def test_each_revision_counts_anew(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair[:1])
    chat(http, "support-bot")
    point(http, pair, 1, 1)
    for number in range(6):
        chat(http, "support-bot", user=f"user-{number}")
    report = report_of(http, 6)
    assert (report["alias"], report["revision"]) == ("support-bot", 2)
    assert {one["model"] for one in report["versions"]} == set(pair)
    assert sum(one["requests"] for one in report["versions"]) == 6
    first = report_of(http, 1, revision=1)
    assert [(one["model"], one["requests"]) for one in first["versions"]] == [(pair[0], 1)]
    assert first["comparisons"] == []
    # A rollback is a revision of its own.
    assert http.post("/v1/aliases/support-bot/rollback").status_code == 200
    assert report_of(http, 0)["versions"][0]["requests"] == 0


def test_feedback_tells_versions_apart(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair, 3, 2)
    scores = {pair[0]: (0.0, 0.2), pair[1]: (0.8, 1.0)}
    given: Counter[str] = Counter()
    for number in range(60):
        answer = chat(http, "support-bot", user=f"user-{number}").json()
        model = answer["model"]
        body = {"completion_id": answer["id"], "score": scores[model][number % 2]}
        told = http.post(FEEDBACK, json=body).json()
        assert (told["model"], told["revision"]) == (model, 1)
        given[model] += 1
    report = report_of(http, 60)
    assert (report["baseline"], report["confidence"]) == (pair[0], 0.95)
    counts = {one["model"]: one["feedback"]["count"] for one in report["versions"]}
    assert counts == given
    found = {one["measure"]: one for one in report["comparisons"]}
    assert found["feedback"]["model"] == pair[1]
    assert found["feedback"]["verdict"] == "better"
    difference = found["feedback"]["difference"]
    # Which of two scores an answer gets is not balanced between the versions.
    assert difference["value"] == pytest.approx(0.8, abs=0.1)
    assert 0.6 < difference["low"] < difference["value"] < difference["high"] < 1.0
    assert found["error_rate"]["verdict"] == "undecided"
    assert found["first_token_seconds"]["verdict"] == "too_few"
    other = report_of(http, 60, baseline=pair[1])["comparisons"]
    assert {one["measure"]: one["verdict"] for one in other}["feedback"] == "worse"
    refused = http.get("/v1/aliases/support-bot/report", params={"baseline": BASE_MODEL})
    assert error_of(refused, 400)["param"] == "baseline"


def test_feedback_is_kept_and_replaced(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair[:1])
    streamed = chat(http, "support-bot", stream=True).text
    answer_id = streamed.partition('"id": "')[2].partition('"')[0]
    body = {"completion_id": answer_id, "score": 0.5, "comment": "fine", "metadata": {"a": "b"}}
    first = http.post(FEEDBACK, json=body, headers={"idempotency-key": "a"})
    assert first.status_code == 200, first.text
    again = http.post(FEEDBACK, json=body, headers={"idempotency-key": "a"})
    assert again.content == first.content
    told = http.post(FEEDBACK, json=body | {"score": -1, "comment": None}).json()
    assert told.keys() == first.json().keys()
    listed = http.get("/v1/aliases/support-bot/feedback").json()
    assert listed == {"object": "list", "data": [told], "has_more": False}
    assert http.delete("/v1/aliases/support-bot").status_code == 200
    error_of(http.post(FEEDBACK, json=body), 404)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_feedback_on_a_response_finds_its_version(
    http: httpx.Client, client: OpenAI, pair: list[str], is_streamed: bool
) -> None:
    create(http, pair[:1])
    if is_streamed:
        events = client.responses.create(model="support-bot", input="hello", stream=True)
        ids = {
            one.response.id
            for one in events
            if one.type in ("response.created", "response.completed")
        }
    else:
        ids = {client.responses.create(model="support-bot", input="hello").id}
    (response_id,) = ids
    told = http.post(FEEDBACK, json={"completion_id": response_id, "score": 1}).json()
    assert (told["model"], told["completion_id"]) == (pair[0], response_id)


def test_feedback_is_taken_on_answers_of_aliases_only(http: httpx.Client) -> None:
    answer = chat(http, BASE_MODEL).json()
    body = {"completion_id": answer["id"], "score": 1}
    assert error_of(http.post(FEEDBACK, json=body), 404)["param"] == "completion_id"
    for score in (1.5, -2, "good"):
        error = error_of(http.post(FEEDBACK, json=body | {"score": score}), 400)
        assert error["param"] == "score"
