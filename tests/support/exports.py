"""Exports through the API, and waiting for what becomes of them."""

import secrets
from collections.abc import Mapping
from typing import Any

import httpx
from sqlalchemy import Connection, update

from app.db.repositories.adapters import Adapter
from app.db.tables import jobs
from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.polling import eventually

EXPORT_SECONDS = 240


def create_export(http: httpx.Client, model: str, format: str, **more: Any) -> dict[str, Any]:
    answer = http.post("/v1/exports", json={"model": model, "format": format, **more})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def retrieve_export(http: httpx.Client, export_id: str) -> dict[str, Any]:
    answer = http.get(f"/v1/exports/{export_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_until_exported(http: httpx.Client, export: Mapping[str, Any]) -> dict[str, Any]:
    """Wait until an export has ended, and return it."""

    def look() -> dict[str, Any] | None:
        seen = retrieve_export(http, export["id"])
        return seen if seen["status"] in ("succeeded", "failed", "cancelled") else None

    ended = eventually(look, what=f"{export['id']} has ended", within_seconds=EXPORT_SECONDS)
    assert ended is not None
    return ended


def add_model(
    connection: Connection,
    project_id: str,
    *,
    adapter: AdapterSpec = AdapterSpec(),  # noqa: B008
    task: str = "text-generation",
) -> Adapter:
    """Add the row of a fine-tuned model, whose job says how it was trained."""
    name = f"ft:{BASE_MODEL}:acme::{secrets.token_hex(6)}"
    added = add_adapter(connection, project_id, name, task=task)
    spec = JobSpec(
        job_id=added.job_id,
        base_model=BASE_MODEL,
        method="supervised",
        training_file=DatasetRef("file-training", "files/file-training", "0" * 64, 3),
        validation_file=None,
        start_from=None,
        seed=1,
        hyperparameters=Hyperparameters(1, 2, 1e-3, 256),
        adapter=adapter,
        task=task,
    )
    connection.execute(update(jobs).where(jobs.c.id == added.job_id).values(spec=spec.to_json()))
    return added
