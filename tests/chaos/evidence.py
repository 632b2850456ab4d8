"""What the checker judges by: the step log, the rows, and the published bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from app.db.repositories import adapters
from app.db.repositories.adapters import Adapter
from app.db.repositories.events import Event
from app.db.repositories.jobs import Job
from app.domain.errors import NotFound
from app.storage import Storage, open_storage
from tests.chaos.installation import Installation
from tests.chaos.rows import list_jobs, list_results, story_of
from tests.chaos.workload import Recipe
from worker.training.step_log import StepLine

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Published:
    """A final adapter: its row, the digest of its weights, and what is wrong with its files."""

    adapter: Adapter
    weights_sha256: str | None
    damage: str | None


@dataclass(frozen=True)
class Evidence:
    """Everything that is known about a run.

    Attributes:
        accepted: ids of the jobs that were answered with success.
        results: ids of every file of results.
        left_over: processes that outlived their installation.
    """

    accepted: frozenset[str]
    jobs: Mapping[str, Job]
    stories: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    published: Sequence[Published] = ()
    results: Sequence[str] = ()
    steps: Sequence[StepLine] = ()
    left_over: Sequence[str] = ()


def read_steps(path: Path) -> list[StepLine]:
    """Return the lines of a step log by their moment; a torn last line is left out."""
    if not path.exists():
        return []
    decode = msgspec.json.Decoder(StepLine).decode
    whole = path.read_bytes().rpartition(b"\n")[0]
    return sorted((decode(line) for line in whole.splitlines() if line), key=lambda line: line.time)


def gather(
    installation: Installation, accepted: Sequence[str], left_over: Sequence[str] = ()
) -> Evidence:
    """Read everything that the checker wants to know."""
    storage = open_storage(installation.service.settings.storage_url)
    with installation.database() as database, database.read() as connection:
        jobs = {job.id: job for job in list_jobs(connection, installation.project_id)}
        return Evidence(
            accepted=frozenset(accepted),
            jobs=jobs,
            stories={job_id: story_of(connection, job_id) for job_id in jobs},
            published=_published(connection, installation.project_id, storage),
            results=list_results(connection, installation.project_id),
            steps=read_steps(installation.step_log),
            left_over=tuple(left_over),
        )


def recipe_of(job: Job) -> Recipe:
    """Return what a job was made from."""
    known = job.metadata or {}
    return Recipe(job.seed, int(known["records"]), int(known["epochs"]))


def _published(connection: Connection, project_id: str, storage: Storage) -> list[Published]:
    return [
        Published(adapter, *_inspect(storage, adapter.storage_prefix))
        for adapter in adapters.list_final(connection, project_id)
    ]


def _inspect(storage: Storage, prefix: str) -> tuple[str | None, str | None]:
    """Return the digest of an adapter's weights and what is wrong with its checkpoint."""
    checkpoint = prefix.removesuffix("/adapter")
    try:
        directory = storage.directory(checkpoint)
        listing = msgspec.json.decode((directory / "files.json").read_bytes())
    except (NotFound, OSError, msgspec.DecodeError) as error:
        return None, f"{checkpoint}: {error}"
    wrong = [
        name
        for name, listed in listing.items()
        if _sha256(directory / name) != listed["sha256"]
        # The state is for resuming, which an ended job does not: it may have been tidied away.
        and ((directory / name).exists() or name.startswith("adapter/"))
    ]
    weights = _sha256(directory / "adapter" / WEIGHTS)
    return weights, f"{checkpoint}: {wrong[0]} is not what was listed" if wrong else None


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
