"""Exports at the API: their shape, what is refused, and what a model that is exported allows."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.db.repositories.adapters import Adapter
from app.domain.job_spec import AdapterSpec
from tests.support.exports import add_model, create_export, retrieve_export
from tests.support.factories import BASE_MODEL
from tests.support.service import Service
from tests.support.wire import error_of

EXPORTS = "/v1/exports"

AddModel = Callable[..., Adapter]


@pytest.fixture
def new_model(api: Service, key: str) -> AddModel:
    """Add a fine-tuned model to the project of `key`."""

    def add(**fields: Any) -> Adapter:
        with api.database() as database, database.write() as connection:
            return add_model(connection, api.project_of(key), **fields)

    return add


def test_an_export_is_queued_listed_and_cancelled(http: httpx.Client, new_model: AddModel) -> None:
    model = new_model().name
    made = create_export(http, model, "merged", quantization="bfloat16", metadata={"a": "b"})
    assert made.pop("id").startswith("export-")
    created_at = made.pop("created_at")
    assert isinstance(created_at, int)
    assert made == {
        "object": "export",
        "finished_at": None,
        "status": "queued",
        "model": model,
        "format": "merged",
        "quantization": "bfloat16",
        "result_files": [],
        "verification": None,
        "error": None,
        "metadata": {"a": "b"},
    }
    other = create_export(http, model, "adapter")
    assert other["quantization"] == "float32"
    listed = http.get(EXPORTS, params={"limit": 1}).json()
    assert (listed["data"], listed["has_more"]) == ([other], True)
    assert (listed["first_id"], listed["last_id"]) == (other["id"], other["id"])
    (first,) = http.get(EXPORTS, params={"after": other["id"]}).json()["data"]
    assert retrieve_export(http, first["id"]) == first

    cancelled = http.post(f"{EXPORTS}/{first['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"] is not None
    refused = error_of(http.post(f"{EXPORTS}/{first['id']}/cancel"), 400)
    assert "is cancelled" in refused["message"]


def test_a_model_stays_until_its_exports_have_ended(
    http: httpx.Client, new_model: AddModel
) -> None:
    model = new_model().name
    made = create_export(http, model, "adapter")
    refused = error_of(http.delete(f"/v1/models/{model}"), 400)
    assert refused["code"] == "model_in_use"
    assert made["id"] in refused["message"]
    http.post(f"{EXPORTS}/{made['id']}/cancel")
    assert http.delete(f"/v1/models/{model}").json()["deleted"] is True
    # What was exported can still be looked at.
    assert retrieve_export(http, made["id"])["model"] == model


@pytest.mark.parametrize(
    ("fields", "changes", "param", "told"),
    [
        ({}, {"format": "pickle"}, "format", "expected adapter, merged"),
        (
            {},
            {"quantization": "q4_0"},
            "quantization",
            "expected float32, bfloat16, float16, int8, nf4",
        ),
        ({}, {"model": BASE_MODEL}, "model", "base model"),
        ({}, {"compress": True}, "compress", "compress"),
        (
            {"adapter": AdapterSpec("prefix-tuning")},
            {},
            "format",
            "prefix-tuning adapter, which stands before the input",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    http: httpx.Client,
    new_model: AddModel,
    fields: dict[str, Any],
    changes: dict[str, Any],
    param: str,
    told: str,
) -> None:
    asked = {"model": new_model(**fields).name, "format": "merged"} | changes
    refused = error_of(http.post(EXPORTS, json=asked), 400)
    assert refused["param"] == param
    assert told in refused["message"]
    assert http.get(EXPORTS).json()["data"] == []


def test_a_repeated_request_is_one_export(http: httpx.Client, new_model: AddModel) -> None:
    asked = {"model": new_model().name, "format": "adapter"}
    headers = {"Idempotency-Key": "once"}
    answers = [http.post(EXPORTS, json=asked, headers=headers) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert len(http.get(EXPORTS).json()["data"]) == 1
