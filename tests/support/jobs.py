"""Short jobs on a part of the sample data, and waiting for what becomes of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tests.support.factories import BASE_MODEL
from tests.support.polling import eventually
from tests.support.service import REPOSITORY

# Far more than it takes, on a machine that others use too.
JOB_SECONDS = 240

# Of the job that most tests look at (`run` in acceptance/conftest.py).
EPOCHS = 2
STEPS_PER_EPOCH = 2
STEPS = EPOCHS * STEPS_PER_EPOCH

# Small, so that a checkpoint is written quickly.
SMALL = {"adapter": {"r": 4, "alpha": 8}}


@dataclass(frozen=True)
class Run:
    """A job that has succeeded, the statuses it was seen in, and the name of its model."""

    job: FineTuningJob
    statuses: Sequence[str]
    model: str


def support_desk(split: str, records: int) -> bytes:
    """Return the first records of the sample data."""
    path = REPOSITORY / "examples" / "support-desk" / f"{split}.jsonl"
    return b"".join(path.read_bytes().splitlines(keepends=True)[:records])


def create_job(
    client: OpenAI,
    *,
    records: int = 12,
    content: bytes | None = None,
    validation_records: int = 0,
    model: str = BASE_MODEL,
    hyperparameters: Mapping[str, Any] | None = None,
    tunesmith: Mapping[str, Any] | None = SMALL,
    seed: int = 1,
    **more: Any,
) -> FineTuningJob:
    """Upload records and create a job that learns from them.

    Its seed is given, so that what it learns is the same in every run: a few steps on a few
    records come out well with most seeds, not with all.
    """
    content = support_desk("train", records) if content is None else content
    training_file = client.files.create(file=("train.jsonl", content), purpose="fine-tune").id
    if validation_records:
        heldout = support_desk("heldout", validation_records)
        file = client.files.create(file=("heldout.jsonl", heldout), purpose="fine-tune")
        more["validation_file"] = file.id
    settings: Any = {"hyperparameters": dict(hyperparameters or {})}
    return client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file,
        method={"type": "supervised", "supervised": settings},
        extra_body={"tunesmith": dict(tunesmith)} if tunesmith is not None else {},
        seed=seed,
        **more,
    )


def wait_until_ended(
    client: OpenAI,
    job: FineTuningJob,
    note: Callable[[FineTuningJob], None] | None = None,
    within_seconds: float = JOB_SECONDS,
) -> FineTuningJob:
    """Wait until a job is succeeded, failed or cancelled; show each state of it to `note`."""

    def look() -> FineTuningJob | None:
        seen = client.fine_tuning.jobs.retrieve(job.id)
        if note is not None:
            note(seen)
        return seen if seen.status in ("succeeded", "failed", "cancelled") else None

    ended = eventually(look, what=f"{job.id} has ended", within_seconds=within_seconds)
    assert ended is not None
    return ended


def wait_until_step(client: OpenAI, job: FineTuningJob, step: int) -> None:
    """Wait until a running job has told of a step."""

    def look() -> bool:
        seen = client.fine_tuning.jobs.retrieve(job.id)
        assert seen.status not in ("succeeded", "failed", "cancelled"), seen
        progress = progress_of(seen)
        return progress is not None and bool(progress["step"] >= step)

    eventually(look, what=f"step {step} of {job.id}", within_seconds=JOB_SECONDS)


def progress_of(job: FineTuningJob) -> Any:
    """Return how far a job is, as Tunesmith tells it beside OpenAI's fields."""
    return (job.model_extra or {})["tunesmith"]["progress"]


def numbers_of(events: Sequence[FineTuningJobEvent]) -> list[dict[str, Any]]:
    """Return what events of metrics carry."""
    return [dict(event.data) for event in events if event.type == "metrics"]  # type: ignore[call-overload]


def story_of(client: OpenAI, job: FineTuningJob) -> list[FineTuningJobEvent]:
    """Return every event of a job, oldest first."""
    return list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
