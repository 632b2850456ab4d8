"""Shadow traffic at the API: answered by one version, asked of another; a fake engine answers."""

import secrets
from typing import Any

import httpx
import pytest

from app.services.shadows import MAX_UNDER_WAY
from app.storage import open_storage
from tests.acceptance.test_wire_aliases import ALIASES, create, point
from tests.acceptance.test_wire_traffic import chat
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.fake_engine import HELD_BACK, SAY, UNLOADABLE, WHO, FakeEngine
from tests.support.polling import eventually
from tests.support.service import Service, serve_adapter

SAMPLES = f"{ALIASES}/support-bot/shadow_samples"


@pytest.fixture
def pair(api: Service, key: str) -> list[str]:
    """What answers, and what is its shadow."""
    return [serve_adapter(api, key).name for _ in range(2)]


def shadowed(http: httpx.Client, pair: list[str], **shadow: Any) -> None:
    create(http, pair[:1], shadow={"model": pair[1], "share": 1} | shadow)


def samples_of(http: httpx.Client, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = http.get(SAMPLES).json()["data"]
        return data if len(data) >= count else []

    return eventually(look, what=f"{count} samples are there")


def shadow_usage(http: httpx.Client, requests: int) -> dict[str, Any]:
    """Return what was counted of the shadow, once it is so many requests."""

    def look() -> list[dict[str, Any]]:
        data = http.get("/v1/usage").json()["data"]
        return [one for one in data if one["role"] == "shadow" and one["requests"] >= requests]

    (usage,) = eventually(look, what=f"{requests} requests of the shadow are counted")
    return usage


def test_a_shadow_is_asked_and_compared(
    http: httpx.Client, pair: list[str], fake_engine: FakeEngine
) -> None:
    shadowed(http, pair)
    fake_engine.requests.clear()
    fake_engine.callers.clear()
    assert chat(http, "support-bot", f"{SAY}hello", user="somebody").json()["model"] == pair[0]
    (same,) = samples_of(http, 1)
    assert [one["model"] for one in fake_engine.requests] == pair
    assert [priority for _, priority in fake_engine.callers] == ["normal", "low"]
    assert (same["model"], same["shadow_model"], same["revision"]) == (*pair, 1)
    assert (same["is_identical"], same["similarity"], same["error"]) == (True, 1.0, None)
    assert same["seconds"] > 0
    assert same["shadow_seconds"] > 0
    assert same["completion_tokens"] == same["shadow_completion_tokens"] == 4
    # Nothing of what was said is kept unless that is asked for.
    assert same["contents"] is None
    chat(http, "support-bot", WHO)
    other = samples_of(http, 2)[0]
    assert other["is_identical"] is False
    assert 0.5 < other["similarity"] < 1
    usage = shadow_usage(http, 2)
    assert (usage["requests"], usage["answered"], usage["dropped"]) == (2, 2, 0)
    report = http.get(f"{ALIASES}/support-bot/report").json()
    assert (report["shadow"]["model"], report["shadow"]["share"]) == (pair[1], 1.0)
    assert (report["shadow"]["compared"], report["shadow"]["identical"]["value"]) == (2, 0.5)
    # What nobody got is no part of the comparison of those who answer.
    assert [one["requests"] for one in report["versions"]] == [2]


def test_contents_are_kept_if_asked_for(http: httpx.Client, pair: list[str]) -> None:
    shadowed(http, pair, record_contents=True)
    chat(http, "support-bot", WHO, user="somebody")
    (sample,) = samples_of(http, 1)
    contents = sample["contents"]
    assert contents["request"] == {"messages": [{"role": "user", "content": WHO}]}
    said = [
        contents[name]["choices"][0]["message"]["content"] for name in ("answer", "shadow_answer")
    ]
    assert said == pair


def test_a_stream_is_compared_as_a_whole(http: httpx.Client, pair: list[str]) -> None:
    shadowed(http, pair)
    assert "[DONE]" in chat(http, "support-bot", stream=True).text
    (sample,) = samples_of(http, 1)
    assert (sample["is_identical"], sample["similarity"]) == (True, 1.0)
    assert sample["shadow_completion_tokens"] == sample["completion_tokens"] == 4


def test_a_shadow_that_fails_is_noted_and_nothing_else(
    api: Service, http: httpx.Client, key: str, pair: list[str]
) -> None:
    broken = serve_adapter(api, key, f"{UNLOADABLE}:acme::{secrets.token_hex(6)}").name
    shadowed(http, [pair[0], broken])
    assert chat(http, "support-bot").status_code == 200
    (sample,) = samples_of(http, 1)
    assert "cannot load" in sample["error"]
    assert (sample["is_identical"], sample["similarity"]) == (None, None)
    assert shadow_usage(http, 1)["failed"] == 1
    assert http.get(f"{ALIASES}/support-bot/report").json()["shadow"]["compared"] == 0


def test_too_much_is_dropped_and_counted_and_slows_no_answer(
    http: httpx.Client, pair: list[str], fake_engine: FakeEngine
) -> None:
    shadowed(http, pair)
    fake_engine.is_idle.clear()
    try:
        for _ in range(MAX_UNDER_WAY + 5):
            assert chat(http, "support-bot", HELD_BACK).status_code == 200
        assert shadow_usage(http, 0)["dropped"] > 0
        assert http.get(SAMPLES).json()["data"] == []
    finally:
        fake_engine.is_idle.set()
    assert len(samples_of(http, MAX_UNDER_WAY)) == MAX_UNDER_WAY
    usage = shadow_usage(http, MAX_UNDER_WAY)
    assert (usage["requests"], usage["dropped"]) == (MAX_UNDER_WAY, 5)


def test_only_a_share_is_asked_and_only_where_there_is_one(
    http: httpx.Client, pair: list[str], fake_engine: FakeEngine
) -> None:
    shadowed(http, pair, share=0.5)
    fake_engine.requests.clear()
    # One after the other, so that none is dropped.
    for _ in range(40):
        chat(http, "support-bot")
    # Ten standard deviations of a draw lie between none, or all, and a half.
    assert shadow_usage(http, 6)["requests"] < 35
    assert len(samples_of(http, 6)) >= 6
    point(http, pair[:1])
    prompt = f"{SAY}{secrets.token_hex(6)}"
    for model in ("support-bot", pair[1]):
        chat(http, model, prompt)
    asked = [one["model"] for one in fake_engine.requests if prompt in str(one)]
    assert asked == pair
    assert http.get(f"{ALIASES}/support-bot/report").json()["shadow"] is None


def test_predictions_are_compared(api: Service, http: httpx.Client, key: str) -> None:
    names = [f"ft:{BASE_MODEL}:acme::{secrets.token_hex(6)}" for _ in range(2)]
    storage = open_storage(api.settings.storage_url)
    for name in names:
        with api.database() as database, database.write() as connection:
            project = api.project_of(key)
            adapter = add_adapter(connection, project, name, task="text-classification")
        scratch = storage.scratch()
        (scratch / "adapter_config.json").write_text("{}")
        storage.publish(adapter.storage_prefix, scratch)
    shadowed(http, names)
    body = {"model": "support-bot", "inputs": ["a", "b"]}
    answer = http.post("/v1/predictions", json=body)
    assert answer.status_code == 200, answer.text
    (sample,) = samples_of(http, 1)
    assert (sample["route"], sample["similarity"]) == ("/v1/predictions", 1.0)
