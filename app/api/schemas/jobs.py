"""Wire types of fine-tuning jobs, their events and their checkpoints."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from app.api.schemas.common import ListObject, Response
from app.api.schemas.job_requests import Method
from app.db.repositories.adapters import Checkpoint
from app.db.repositories.events import Event
from app.db.repositories.jobs import Job
from app.domain.job_spec import AdapterSpec
from app.domain.job_state import JobStatus
from app.domain.methods import SupervisedHyperparameters


class JobError(Response):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobProgress(Response):
    """How far a run is; its numbers are those of the latest step."""

    step: int
    total_steps: int
    train_loss: float | None
    tokens_per_second: float | None
    attempt: int


class JobStart(Response):
    """The uploaded adapter that a job starts from."""

    file: str


class JobDetails(Response):
    """What Tunesmith tells beyond OpenAI's fields."""

    base_model: str
    task: str
    adapter: dict[str, Any]
    start_from: JobStart | None
    training: dict[str, Any]
    evaluation: dict[str, Any]
    report: dict[str, Any] | None
    progress: JobProgress | None
    pause_requested: bool
    learning_rate: float | None
    sweep: Annotated[str | None, Field(description="Id of the sweep that it is a trial of.")]


class FineTuningJob(Response):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: SupervisedHyperparameters
    model: str
    organization_id: str
    result_files: list[str]
    status: JobStatus
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    seed: int
    estimated_finish: int | None
    integrations: None = None
    metadata: dict[str, str] | None
    method: Method
    tunesmith: JobDetails

    @classmethod
    def of(cls, job: Job, organization_id: str) -> "FineTuningJob":
        succeeded = job.status is JobStatus.SUCCEEDED
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            error=JobError(**job.error) if job.error else None,
            fine_tuned_model=job.output_model if succeeded else None,
            finished_at=int(job.finished_at) if job.finished_at is not None else None,
            hyperparameters=SupervisedHyperparameters(
                **{key: job.hyperparameters[key] for key in SupervisedHyperparameters.model_fields}
            ),
            model=job.model,
            organization_id=organization_id,
            result_files=job.result_files or [],
            status=job.status,
            trained_tokens=job.trained_tokens if succeeded else None,
            training_file=job.training_file,
            validation_file=job.validation_file,
            seed=job.seed,
            estimated_finish=int(job.estimated_finish) if job.estimated_finish else None,
            metadata=job.metadata,
            method={
                "type": job.method,
                job.method: {
                    **job.extension["method"],
                    "hyperparameters": job.hyperparameters,
                },
            },
            tunesmith=JobDetails(
                base_model=job.base_model,
                task=job.task,
                adapter=_adapter_of(job),
                start_from=_start_of(job),
                training=job.extension["training"],
                evaluation=job.extension["evaluation"],
                report=job.report,
                progress=JobProgress(**job.progress) if job.progress else None,
                pause_requested=job.pause_requested,
                learning_rate=_learning_rate_of(job),
                sweep=job.extension.get("sweep"),
            ),
        )


class FineTuningJobList(Response):
    object: ListObject = "list"
    data: list[FineTuningJob]
    has_more: bool


class FineTuningJobEvent(Response):
    """One line of a job's story."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: Event) -> "FineTuningJobEvent":
        return cls(
            id=event.id,
            created_at=int(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class FineTuningJobEventList(Response):
    object: ListObject = "list"
    data: list[FineTuningJobEvent]
    has_more: bool


class CheckpointMetrics(Response):
    """Metrics at a checkpoint; those that were not measured are null."""

    step: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class FineTuningJobCheckpoint(Response):
    """A point of a run that can be called as a model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "FineTuningJobCheckpoint":
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at),
            fine_tuned_model_checkpoint=checkpoint.model,
            fine_tuning_job_id=checkpoint.job_id,
            metrics=CheckpointMetrics(**checkpoint.metrics),
            step_number=checkpoint.step,
        )


class FineTuningJobCheckpointList(Response):
    object: ListObject = "list"
    data: list[FineTuningJobCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _adapter_of(job: Job) -> dict[str, Any]:
    spec = AdapterSpec.of_wire(job.extension["adapter"])
    return {"type": spec.type, **spec.complete_options()}


def _start_of(job: Job) -> JobStart | None:
    file = (job.start_from or {}).get("file")
    return JobStart(file=file["file_id"]) if file else None


def _learning_rate_of(job: Job) -> float | None:
    if job.spec is None:
        return None
    rate: float = msgspec.json.decode(job.spec)["hyperparameters"]["learning_rate"]
    return rate
