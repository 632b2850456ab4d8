"""Aliases at the API, with a fake engine behind it."""

import secrets
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.fake_engine import ENCODER, FakeEngine
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of

ALIASES = "/v1/aliases"
CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def pair(api: Service, key: str) -> list[str]:
    """The names of two fine-tuned models in the project of `key`."""
    return [serve_adapter(api, key).name for _ in range(2)]


def pointing(models: list[str], *weights: float, **more: Any) -> dict[str, Any]:
    weights = weights or (1.0,) * len(models)
    targets = [
        {"model": model, "weight": weight} for model, weight in zip(models, weights, strict=True)
    ]
    return {"targets": targets, **more}


def create(http: httpx.Client, models: list[str], *weights: float, **more: Any) -> dict[str, Any]:
    body = {"name": "support-bot"} | pointing(models, *weights, **more)
    answer = http.post(ALIASES, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def point(http: httpx.Client, models: list[str], *weights: float, **more: Any) -> dict[str, Any]:
    answer = http.post(f"{ALIASES}/support-bot", json=pointing(models, *weights, **more))
    assert answer.status_code == 200, answer.text
    pointed: dict[str, Any] = answer.json()
    return pointed


def answering(http: httpx.Client, **more: Any) -> str:
    """Return the version that answers a request to the alias."""
    answer = http.post(CHAT, json={"model": "support-bot", "messages": HELLO, **more})
    assert answer.status_code == 200, answer.text
    model: str = answer.json()["model"]
    return model


def test_an_alias_is_there_and_then_gone(
    http: httpx.Client, client: OpenAI, pair: list[str]
) -> None:
    made = create(http, pair, 95, 5, reason="a canary", metadata={"a": "b"})
    assert made.keys() == {"id", "object", "created_at", "name", "task", "revision", "metadata"}
    assert (made["object"], made["name"], made["task"]) == (
        "alias",
        "support-bot",
        "text-generation",
    )
    assert made["metadata"] == {"a": "b"}
    revision = made["revision"]
    assert revision["targets"] == [
        {"model": pair[0], "weight": 95.0},
        {"model": pair[1], "weight": 5.0},
    ]
    assert (revision["number"], revision["reason"], revision["restores"]) == (1, "a canary", None)
    assert revision["created_by"]
    assert http.get(f"{ALIASES}/support-bot").json() == made
    assert http.get(ALIASES).json() == {"object": "list", "data": [made], "has_more": False}
    assert [model.id for model in client.models.list()][-1] == "support-bot"
    assert client.models.retrieve("support-bot").owned_by == "acme"

    gone = http.delete(f"{ALIASES}/support-bot")
    assert gone.json() == {"id": made["id"], "object": "alias", "deleted": True}
    for answer in (
        http.get(f"{ALIASES}/support-bot"),
        http.delete(f"{ALIASES}/support-bot"),
        http.get("/v1/models/support-bot"),
        http.post(CHAT, json={"model": "support-bot", "messages": HELLO}),
    ):
        error_of(answer, 404)


def test_a_request_is_answered_by_a_version_that_is_named(
    http: httpx.Client, client: OpenAI, pair: list[str], fake_engine: FakeEngine
) -> None:
    create(http, pair, 1, 1)
    seen = {answering(http, user=f"user-{number}") for number in range(20)}
    assert seen == set(pair)
    fake_engine.requests.clear()
    chunks = list(
        client.chat.completions.create(
            model="support-bot", messages=HELLO, stream=True, user="somebody"
        )
    )
    version = answering(http, safety_identifier="somebody", user="another")
    assert {chunk.model for chunk in chunks} == {version}
    assert [request["model"] for request in fake_engine.requests] == [version] * 2
    assert client.completions.create(model="support-bot", prompt="x").model in pair


def test_a_user_stays_until_weights_say_otherwise(http: httpx.Client, pair: list[str]) -> None:
    users = [f"user-{number}" for number in range(24)]
    create(http, pair, 1, 1)
    before = {user: answering(http, user=user) for user in users}
    assert before == {user: answering(http, user=user) for user in users}
    point(http, pair, 1, 3)
    after = {user: answering(http, user=user) for user in users}
    assert {after[user] for user in users if before[user] == pair[1]} == {pair[1]}
    assert Counter(after.values())[pair[1]] > Counter(before.values())[pair[1]]
    point(http, pair, 0, 1)
    assert {answering(http, user=user) for user in users} == {pair[1]}


def test_revisions_tell_where_it_pointed(http: httpx.Client, pair: list[str]) -> None:
    first = create(http, pair[:1])
    second = point(http, pair, 90, 10, reason="a canary", metadata={"c": "d"})
    assert second["id"] == first["id"]
    assert second["metadata"] == {"c": "d"}
    assert second["revision"]["number"] == 2
    back = http.post(f"{ALIASES}/support-bot/rollback", json={"reason": "wrong"}).json()
    assert back["revision"]["targets"] == first["revision"]["targets"]
    assert (back["revision"]["number"], back["revision"]["restores"]) == (3, 1)
    assert back["metadata"] == {"c": "d"}
    named = http.post(f"{ALIASES}/support-bot/rollback", json={"revision": 2}).json()
    assert (named["revision"]["number"], named["revision"]["restores"]) == (4, 2)
    # Without a body too.
    again = http.post(f"{ALIASES}/support-bot/rollback").json()
    assert (again["revision"]["number"], again["revision"]["restores"]) == (5, 1)
    listed = http.get(f"{ALIASES}/support-bot/revisions").json()
    assert [one["number"] for one in listed["data"]] == [5, 4, 3, 2, 1]
    assert listed["data"][-1] == first["revision"]
    page = {"limit": 2, "after": listed["data"][1]["id"]}
    rest = http.get(f"{ALIASES}/support-bot/revisions", params=page).json()
    assert [one["number"] for one in rest["data"]] == [3, 2]
    assert rest["has_more"] is True
    assert answering(http) == pair[0]


def test_who_rolls_back_twice_goes_back_twice(http: httpx.Client, pair: list[str]) -> None:
    """And not to what was wrong with the first time."""
    create(http, pair[:1])
    point(http, pair[1:])
    point(http, pair)
    rollback = f"{ALIASES}/support-bot/rollback"

    restored = [http.post(rollback).json()["revision"]["restores"] for _ in range(2)]

    assert restored == [2, 1]
    assert error_of(http.post(rollback), 400)["param"] == "revision"
    # What was pointed anew is gone back from as ever.
    point(http, pair[1:])
    assert http.post(rollback).json()["revision"]["restores"] == 5
    assert answering(http) == pair[0]
    assert error_of(http.post(rollback), 400)["param"] == "revision"


def test_a_rollback_that_goes_nowhere_is_refused(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    rollback = f"{ALIASES}/support-bot/rollback"
    assert error_of(http.post(rollback, json={}), 400)["param"] == "revision"
    point(http, pair[:1])
    assert error_of(http.post(rollback, json={"revision": 2}), 400)["param"] == "revision"
    assert error_of(http.post(rollback, json={"revision": 3}), 404)["param"] == "revision"
    error_of(http.post(f"{ALIASES}/other/rollback", json={}), 404)


def test_what_changed_meanwhile_is_not_overwritten(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    point(http, pair[:1], expected_revision=1)
    for path in ("support-bot", "support-bot/rollback"):
        body = {"expected_revision": 1} | ({} if "/" in path else pointing(pair))
        error = error_of(http.post(f"{ALIASES}/{path}", json=body), 400)
        assert (error["param"], error["code"]) == ("expected_revision", "revision_changed")
    assert http.get(f"{ALIASES}/support-bot").json()["revision"]["number"] == 2


def test_what_an_alias_needs_is_kept(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair, shadow=None)
    error = error_of(http.delete(f"/v1/models/{pair[1]}"), 400)
    assert error["code"] == "model_in_use"
    assert "support-bot" in error["message"]
    shadow = {"model": pair[1], "share": 0.5}
    point(http, pair[:1], shadow=shadow)
    assert error_of(http.delete(f"/v1/models/{pair[1]}"), 400)["code"] == "model_in_use"
    # Once no current revision needs it, it can go, and what needs it cannot come back.
    point(http, pair[:1])
    assert http.delete(f"/v1/models/{pair[1]}").status_code == 200
    for revision in (1, 2):
        body = {"revision": revision}
        error = error_of(http.post(f"{ALIASES}/support-bot/rollback", json=body), 400)
        assert (error["param"], error["code"]) == ("revision", "model_not_found")
        assert pair[1] in error["message"]
    assert answering(http) == pair[0]


def test_an_alias_is_not_deleted_as_a_model(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    point(http, pair[:1])
    revisions = http.get(f"{ALIASES}/support-bot/revisions").json()
    error = error_of(http.delete("/v1/models/support-bot"), 400)
    assert (error["param"], error["code"]) == ("model", "alias")
    assert "DELETE /v1/aliases/support-bot" in error["message"]
    assert http.get(f"{ALIASES}/support-bot/revisions").json() == revisions
    assert answering(http) == pair[0]


def test_versions_have_one_task(api: Service, http: httpx.Client, key: str) -> None:
    with api.database() as database, database.write() as connection:
        name = f"ft:{ENCODER}:acme::{secrets.token_hex(6)}"
        add_adapter(connection, api.project_of(key), name, task="text-classification")
    body = {"name": "x"} | pointing([BASE_MODEL, name])
    error = error_of(http.post(ALIASES, json=body), 400)
    assert error["param"] == "targets[1].model"
    assert "text-classification" in error["message"]
    create(http, [BASE_MODEL])
    refused = http.post(f"{ALIASES}/support-bot", json=pointing([name]))
    assert error_of(refused, 400)["param"] == "targets"
    # The route is refused as if the version had been named.
    error = error_of(
        http.post("/v1/predictions", json={"model": "support-bot", "inputs": "x"}), 400
    )
    assert error["code"] == "wrong_route"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": BASE_MODEL}, "name"),
        ({"name": "ft:mine"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"targets": []}, "targets"),
        ({"targets": [{"model": BASE_MODEL, "weight": -1}]}, "targets[0].weight"),
        ({"targets": [{"model": BASE_MODEL, "weight": 0}]}, "targets"),
        ({"targets": [{"model": BASE_MODEL}]}, "targets[0].weight"),
        ({"targets": [{"model": BASE_MODEL, "weight": 1}] * 2}, "targets[1].model"),
        ({"shadow": {"model": BASE_MODEL, "share": 0.5}}, "shadow.model"),
        ({"shadow": {"model": "ft:x", "share": 1.5}}, "shadow.share"),
        ({"shadow": {"model": ENCODER, "share": 1}}, "shadow.model"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"name": "x"} | pointing([BASE_MODEL]) | fields
    assert error_of(http.post(ALIASES, json=body), 400)["param"] == param
    assert http.get(ALIASES).json()["data"] == []


def test_a_name_is_taken_once_in_a_project(
    api: Service, http: httpx.Client, pair: list[str]
) -> None:
    create(http, pair)
    body = {"name": "support-bot"} | pointing(pair)
    error = error_of(http.post(ALIASES, json=body), 400)
    assert (error["param"], error["code"]) == ("name", "alias_exists")
    error = error_of(http.post(ALIASES, json={"name": "x"} | pointing(["support-bot"])), 400)
    assert "is an alias" in error["message"]
    key = api.new_key(project=secrets.token_hex(4))
    with api.http(key) as other:
        theirs = create(other, [serve_adapter(api, key).name])
        assert other.get(ALIASES).json()["data"] == [theirs]
        assert answering(other) == theirs["revision"]["targets"][0]["model"]
        error_of(other.post(f"{ALIASES}/support-bot", json=pointing(pair)), 404)
    assert answering(http) in pair


def test_what_must_not_move_names_a_version(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    body = {"model": "support-bot", "training_file": "file-x"}
    error = error_of(http.post("/v1/fine_tuning/jobs", json=body), 400)
    assert (error["param"], error["code"]) == ("model", "alias")
    assert pair[0] in error["message"]
    body = {"models": ["support-bot", pair[0]], "method": "mean_adapters"}
    assert error_of(http.post("/v1/ensembles", json=body), 400)["param"] == "models[0]"


def test_a_grader_may_ask_an_alias(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    grader = {
        "type": "score_model",
        "name": "judge",
        "model": "support-bot",
        "input": [{"role": "user", "content": 'say {"result": 0.5, "steps": []}'}],
    }
    body = {"grader": grader, "model_sample": "x"}
    answer = http.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["reward"] == 0.5


def test_a_repetition_under_a_key_makes_one(http: httpx.Client, pair: list[str]) -> None:
    create(http, pair)
    headers = {"idempotency-key": "a"}
    first, again = (
        http.post(f"{ALIASES}/support-bot", json=pointing(pair[:1]), headers=headers)
        for _ in range(2)
    )
    assert again.content == first.content
    assert len(http.get(f"{ALIASES}/support-bot/revisions").json()["data"]) == 2


def test_moving_an_alias_under_traffic_loses_no_request(
    api: Service, http: httpx.Client, key: str, pair: list[str]
) -> None:
    for model in pair:
        # The engine has both, as it has what answered before.
        http.post(CHAT, json={"model": model, "messages": HELLO})
    create(http, pair[:1])
    is_over = threading.Event()

    def ask() -> list[tuple[int, str]]:
        seen = []
        with api.http(key) as own:
            while not is_over.is_set():
                answer = own.post(CHAT, json={"model": "support-bot", "messages": HELLO})
                seen.append((answer.status_code, answer.json().get("model")))
        return seen

    with ThreadPoolExecutor(max_workers=4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for _ in range(8):
                point(http, pair[1:])
                # From the very next request on.
                assert answering(http) == pair[1]
                assert http.post(f"{ALIASES}/support-bot/rollback").status_code == 200
                assert answering(http) == pair[0]
        finally:
            is_over.set()
    seen = [one for future in asking for one in future.result()]
    assert {status for status, _ in seen} == {200}
    assert {model for _, model in seen} == set(pair)
