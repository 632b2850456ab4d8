"""Rows with sensible values for whatever a test does not care about."""

import io
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, update

from app.db.clock import now
from app.db.repositories import adapters, aliases, files, jobs, keys
from app.db.repositories.adapters import Adapter
from app.db.repositories.aliases import Alias, NewRevision
from app.db.repositories.files import File, NewFile
from app.db.repositories.jobs import Job, NewJob
from app.db.tables import jobs as job_table
from app.domain.aliases import Shadow, Target
from app.domain.ids import fine_tuned_model_name, new_id
from app.domain.job_state import JobStatus
from app.services.files import store
from app.storage import Storage

BASE_MODEL = "smollm2-135m-instruct"


def add_project(connection: Connection, name: str = "default") -> str:
    return keys.ensure_project(connection, "acme", name)


def add_file(connection: Connection, project_id: str, **overrides: Any) -> File:
    file_id = new_id("file-")
    values: dict[str, Any] = {
        "id": file_id,
        "project_id": project_id,
        "purpose": "fine-tune",
        "filename": "train.jsonl",
        "bytes": 12,
        "sha256": "0" * 64,
        "storage_key": f"files/{file_id}",
        "record_kind": "chat",
        "record_count": 3,
    }
    return files.add(connection, NewFile(**values | overrides))


def extension(**overrides: Any) -> dict[str, Any]:
    """Return what a job keeps of the request's `tunesmith` and method."""
    values: dict[str, Any] = {
        "task": "text-generation",
        "method": {},
        "adapter": {"type": "lora"},
        "training": {},
        "evaluation": {},
    }
    return values | overrides


def add_job(connection: Connection, project_id: str, **overrides: Any) -> Job:
    """Add a job in `validating_files`."""
    job_id = new_id("ftjob-")
    values: dict[str, Any] = {
        "id": job_id,
        "project_id": project_id,
        "model": BASE_MODEL,
        "base_model": BASE_MODEL,
        "start_from": None,
        "method": "supervised",
        "hyperparameters": {
            "n_epochs": "auto",
            "batch_size": "auto",
            "learning_rate_multiplier": "auto",
        },
        "extension": extension(),
        "training_file": "file-training",
        "validation_file": None,
        "seed": 1,
        "metadata": None,
        "output_model": fine_tuned_model_name(BASE_MODEL, "acme", None, job_id),
    }
    return jobs.add(connection, NewJob(**values | overrides))


def add_queued_job(connection: Connection, project_id: str, **overrides: Any) -> Job:
    job = add_job(connection, project_id, **overrides)
    return jobs.transition(connection, job.id, JobStatus.QUEUED, message="queued")


def add_running_job(
    connection: Connection, project_id: str, *, lease_seconds: float = 60, **overrides: Any
) -> Job:
    """Add a job that the attempt of epoch 1 holds; a lease may have ended in the past."""
    job = add_queued_job(connection, project_id, **overrides)
    return jobs.transition(
        connection,
        job.id,
        JobStatus.RUNNING,
        message="claimed",
        lease_epoch=1,
        lease_owner="someone",
        lease_expires_at=now() + lease_seconds,
        attempts=1,
    )


def add_job_in(connection: Connection, project_id: str, status: JobStatus, **overrides: Any) -> Job:
    """Add a job in any status, past the table of moves."""
    job = add_job(connection, project_id, **overrides)
    connection.execute(update(job_table).where(job_table.c.id == job.id).values(status=status))
    return jobs.get(connection, project_id, job.id)


def add_adapter(
    connection: Connection,
    project_id: str,
    name: str,
    *,
    is_final: bool = True,
    task: str = "text-generation",
) -> Adapter:
    """Add an adapter of a job that succeeded."""
    job = add_job_in(connection, project_id, JobStatus.SUCCEEDED)
    adapters.add(
        connection,
        name=name,
        project_id=project_id,
        job_id=job.id,
        base_model=BASE_MODEL,
        task=task,
        storage_prefix=f"jobs/{job.id}/e1/step-1/adapter",
        manifest_sha256="0" * 64,
        step=1,
        is_final=is_final,
    )
    adapter = adapters.find(connection, project_id, name)
    assert adapter is not None
    return adapter


def add_alias(
    connection: Connection,
    project_id: str,
    models: Sequence[str],
    *,
    name: str | None = None,
    shadow: Shadow | None = None,
) -> Alias:
    """Add an alias of models that get equal shares."""
    return aliases.add(
        connection,
        project_id=project_id,
        name=name or new_id("alias-"),
        task="text-generation",
        metadata=None,
        revision=NewRevision([Target(model, 1) for model in models], shadow, None, "key"),
    )


def dataset(records: int = 3) -> bytes:
    """Return a small chat dataset."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} and one?"},
                {"role": "assistant", "content": f"{number + 1}"},
            ]
        }
        for number in range(records)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def store_dataset(
    connection: Connection, storage: Storage, project_id: str, content: bytes | None = None
) -> File:
    """Store a dataset as an upload does: content first, row last."""
    content = dataset() if content is None else content
    stored = store(
        storage,
        io.BytesIO(content),
        project_id=project_id,
        purpose="fine-tune",
        filename="train.jsonl",
        max_bytes=len(content),
        min_free_bytes=0,
        expires_after_seconds=None,
    )
    return files.add(connection, stored)
