"""Ensembles and explanations at the API, with a fake engine behind it."""

import json
import secrets
from typing import Any

import httpx
import pytest

from app.storage import open_storage
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.fake_engine import ENCODER, REFUSE, SAY, FakeEngine
from tests.support.service import Service
from tests.support.wire import error_of

ENSEMBLES = "/v1/ensembles"
PREDICTIONS = "/v1/predictions"
EXPLANATIONS = "/v1/explanations"


@pytest.fixture
def pair(api: Service, key: str) -> list[str]:
    """The names of two fine-tuned classifiers in the project of `key`."""
    storage = open_storage(api.settings.storage_url)
    names = [f"ft:{ENCODER}:acme::{secrets.token_hex(6)}" for _ in range(2)]
    outline = {"problem": "single_label", "labels": ["bad", "good"]}
    for name in names:
        with api.database() as database, database.write() as connection:
            adapter = add_adapter(connection, api.project_of(key), name, task="text-classification")
        scratch = storage.scratch()
        (scratch / "task.json").write_text(
            json.dumps({"task": "text-classification", "outline": outline})
        )
        storage.publish(adapter.storage_prefix, scratch)
    return names


def add_lora(api: Service, key: str) -> str:
    """Add a fine-tuned model for text generation, and return its name."""
    name = f"ft:{BASE_MODEL}:acme::{secrets.token_hex(6)}"
    with api.database() as database, database.write() as connection:
        adapter = add_adapter(connection, api.project_of(key), name)
    storage = open_storage(api.settings.storage_url)
    scratch = storage.scratch()
    (scratch / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    storage.publish(adapter.storage_prefix, scratch)
    return name


def asking(pair: list[str], **changes: Any) -> dict[str, Any]:
    return {"models": pair, "method": "mean_probabilities"} | changes


def create(http: httpx.Client, pair: list[str], **changes: Any) -> dict[str, Any]:
    answer = http.post(ENSEMBLES, json=asking(pair, **changes))
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def ids_of(http: httpx.Client) -> list[str]:
    return [one["id"] for one in http.get("/v1/models").json()["data"]]


def test_an_ensemble_is_there_and_then_gone(http: httpx.Client, pair: list[str]) -> None:
    made = create(http, pair, weights=[3, 1], suffix="both", metadata={"a": "b"})
    assert made.keys() == {
        *("id", "object", "created_at", "model", "method", "task", "members", "metadata")
    }
    assert made["id"].startswith("ens-")
    assert made["object"] == "ensemble"
    # The base model of the rows that the factory makes, whatever their own name says.
    assert made["model"].startswith(f"ft:{BASE_MODEL}:acme:both:")
    assert made["members"] == [
        {"model": pair[0], "weight": 0.75},
        {"model": pair[1], "weight": 0.25},
    ]
    assert (made["task"], made["metadata"]) == ("text-classification", {"a": "b"})
    assert http.get(f"{ENSEMBLES}/{made['id']}").json() == made
    assert http.get(ENSEMBLES).json() == {"object": "list", "data": [made], "has_more": False}
    assert ids_of(http)[-3:] == [*pair, made["model"]]
    model = http.get(f"/v1/models/{made['model']}").json()
    assert model["id"] == made["model"]
    assert model["owned_by"] == "acme"

    assert error_of(http.delete(f"/v1/models/{pair[0]}"), 400)["code"] == "model_in_use"
    gone = http.delete(f"{ENSEMBLES}/{made['id']}")
    assert gone.json() == {"id": made["id"], "object": "ensemble", "deleted": True}
    error_of(http.get(f"{ENSEMBLES}/{made['id']}"), 404)
    error_of(http.delete(f"{ENSEMBLES}/{made['id']}"), 404)
    error_of(http.get(f"/v1/models/{made['model']}"), 404)
    error_of(http.post(PREDICTIONS, json={"model": made["model"], "inputs": "x"}), 404)
    assert ids_of(http)[-2:] == pair


def test_an_ensemble_can_be_deleted_as_a_model(http: httpx.Client, pair: list[str]) -> None:
    made = create(http, pair)
    assert http.delete(f"/v1/models/{made['model']}").json()["deleted"] is True
    assert http.get(ENSEMBLES).json()["data"] == []
    assert http.delete(f"/v1/models/{pair[0]}").status_code == 200


def test_every_member_is_asked_for_all_labels(
    http: httpx.Client, pair: list[str], fake_engine: FakeEngine
) -> None:
    made = create(http, pair)
    fake_engine.requests.clear()
    body = {"model": made["model"], "inputs": [f"{SAY}good", "y"], "parameters": {"top_k": None}}
    answer = http.post(PREDICTIONS, json=body)
    assert answer.status_code == 200, answer.text
    assert fake_engine.requests == [
        {"model": name, "inputs": body["inputs"], "parameters": {"top_k": None}} for name in pair
    ]
    told = answer.json()
    assert told["id"].startswith("pred-")
    assert (told["object"], told["model"]) == ("prediction", made["model"])
    assert told["task"] == "text-classification"
    assert told["predictions"] == [[{"label": "good", "score": 0.75}]] * 2
    assert told["truncated_inputs"] == []
    assert told["usage"] == {"inputs": 2, "input_tokens": 18}


def test_what_an_engine_refuses_is_told(http: httpx.Client, pair: list[str]) -> None:
    model = create(http, pair)["model"]
    for status in (400, 429):
        error_of(
            http.post(PREDICTIONS, json={"model": model, "inputs": f"{REFUSE}{status}"}), status
        )
    body = {"model": model, "inputs": "x", "parameters": {"temperature": 1}}
    assert error_of(http.post(PREDICTIONS, json=body), 400)["param"] == "parameters.temperature"


def test_other_routes_refuse_an_ensemble(http: httpx.Client, pair: list[str]) -> None:
    model = create(http, pair)["model"]
    messages = [{"role": "user", "content": "hello"}]
    for route, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/embeddings", {"input": "hello"}),
        (EXPLANATIONS, {"inputs": "hello"}),
        ("/v1/fine_tuning/jobs", {"training_file": "file-x"}),
    ):
        error = error_of(http.post(route, json={"model": model, **body}), 400)
        assert "is an ensemble" in error["message"], route
        assert error["param"] == "model"


def test_a_mean_of_adapters_chats(
    api: Service, http: httpx.Client, key: str, fake_engine: FakeEngine
) -> None:
    names = [add_lora(api, key) for _ in range(2)]
    made = create(http, names, method="mean_adapters")
    body = {"model": made["model"], "messages": [{"role": "user", "content": f"{SAY}hello"}]}
    fake_engine.means.clear()
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == made["model"]
    (members,) = fake_engine.means
    assert [member["weight"] for member in members] == [0.5, 0.5]
    error = error_of(http.post(PREDICTIONS, json={"model": made["model"], "inputs": "x"}), 400)
    assert "/v1/chat/completions" in error["message"]
    assert http.delete(f"{ENSEMBLES}/{made['id']}").status_code == 200
    assert fake_engine.unloads[-1] == made["model"]
    error_of(http.post("/v1/chat/completions", json=body), 404)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"models": ["ft:x"]}, "models"),
        ({"models": ["ft:x"] * 17}, "models"),
        ({"method": "vote"}, "method"),
        ({"weights": [1]}, "weights"),
        ({"weights": [1, 0]}, "weights[1]"),
        ({"weights": [1, -1]}, "weights[1]"),
        ({"suffix": "a b"}, "suffix"),
        ({"name": "x"}, "name"),
    ],
)
def test_a_wrong_field_is_named(
    http: httpx.Client, pair: list[str], fields: dict[str, Any], param: str
) -> None:
    assert error_of(http.post(ENSEMBLES, json=asking(pair) | fields), 400)["param"] == param
    assert http.get(ENSEMBLES).json()["data"] == []


def test_a_repetition_under_a_key_makes_one(http: httpx.Client, pair: list[str]) -> None:
    headers = {"idempotency-key": "a"}
    first, again = (http.post(ENSEMBLES, json=asking(pair), headers=headers) for _ in range(2))
    assert first.status_code == 200
    assert again.content == first.content
    assert len(http.get(ENSEMBLES).json()["data"]) == 1


def test_another_project_sees_nothing(api: Service, http: httpx.Client, pair: list[str]) -> None:
    made = create(http, pair)
    with api.http(api.new_key(project=secrets.token_hex(4))) as other:
        assert other.get(ENSEMBLES).json()["data"] == []
        assert made["model"] not in ids_of(other)
        for answer in (
            other.get(f"{ENSEMBLES}/{made['id']}"),
            other.delete(f"{ENSEMBLES}/{made['id']}"),
            other.get(f"/v1/models/{made['model']}"),
            other.delete(f"/v1/models/{made['model']}"),
            other.post(PREDICTIONS, json={"model": made["model"], "inputs": "x"}),
            other.post(ENSEMBLES, json=asking(pair)),
        ):
            error_of(answer, 404)
    assert http.get(f"{ENSEMBLES}/{made['id']}").json() == made


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a"] * 17}, "inputs"),
        ({"inputs": [{"text": "a", "pair": "b"}]}, "inputs[0].pair"),
        ({"inputs": "a", "parameters": {"steps": 19}}, "parameters.steps"),
        ({"inputs": "a", "parameters": {"baseline": "x"}}, "parameters.baseline"),
        ({"inputs": "a", "model": ENCODER}, "model"),
        ({}, "inputs"),
    ],
)
def test_a_wrong_field_of_an_explanation_is_named(
    http: httpx.Client, pair: list[str], fields: dict[str, Any], param: str
) -> None:
    error = error_of(http.post(EXPLANATIONS, json={"model": pair[0], **fields}), 400)
    assert error["param"] == param
