"""Wire types of fine-tuning jobs. The shapes of `method` are made from the registry of methods."""

from typing import Annotated, Any, Literal, Union

import msgspec
from pydantic import Field, create_model, model_validator

from app.api.schemas.common import ListObject, Metadata, Request, Response
from app.db.repositories.adapters import Checkpoint
from app.db.repositories.events import Event
from app.db.repositories.jobs import Job
from app.domain.job_spec import LoraSpec
from app.domain.job_state import JobStatus
from app.domain.methods import METHODS, SupervisedHyperparameters
from app.services.jobs import MAX_SEED, JobRequest

_LORA = LoraSpec()
DEFAULT_METHOD = "supervised"


class LoraAdapter(Request):
    """Shape of a LoRA adapter."""

    type: Literal["lora"] = "lora"
    r: Annotated[int, Field(ge=1, le=256, description="Rank of the update.")] = _LORA.r
    alpha: Annotated[
        int, Field(ge=1, le=1024, description="The update is scaled by alpha / r.")
    ] = _LORA.alpha
    dropout: Annotated[float, Field(ge=0, lt=1)] = _LORA.dropout
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.]+$")]],
        Field(min_length=1, max_length=32, description="Last names of the linear layers."),
    ] = Field(default_factory=lambda: list(_LORA.target_modules))


class TrainingOptions(Request):
    """How the run trains, beyond OpenAI's hyperparameters."""

    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    max_length_tokens: Annotated[
        int | None,
        Field(
            ge=16,
            description="Longer records are cut; the model's context length if absent.",
        ),
    ] = None


class JobExtension(Request):
    """What Tunesmith takes beyond OpenAI's fields (through the client's `extra_body`)."""

    adapter: LoraAdapter | None = None
    training: TrainingOptions = TrainingOptions()


def _method_model(name: str) -> type[Request]:
    method = METHODS[name]
    title = name.title().replace("_", "")
    settings: Any = create_model(
        f"{title}MethodSettings",
        __base__=Request,
        __doc__=f"Settings of the method `{name}`.",
        hyperparameters=(method.hyperparameters, method.hyperparameters()),
    )
    fields: dict[str, Any] = {
        "type": (Literal[name], ...),
        name: (settings, settings()),
    }
    return create_model(f"{title}Method", __base__=Request, __doc__=method.summary, **fields)


def _method_union() -> Any:
    models = tuple(_method_model(name) for name in METHODS)
    if len(models) == 1:
        return models[0]
    return Annotated[Union[models], Field(discriminator="type")]  # noqa: UP007 - made at run time.


Method: Any = _method_union()


class CreateFineTuningJobRequest(Request):
    """A job to train a model on a file."""

    model: Annotated[str, Field(description="A base model, or a fine-tuned one to go on from.")]
    training_file: Annotated[str, Field(description="Id of a file uploaded for `fine-tune`.")]
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: Annotated[
        SupervisedHyperparameters | None,
        # Not `Field(deprecated=…)`: that warns whenever the field is read, here too.
        Field(description="Use `method` instead.", json_schema_extra={"deprecated": True}),
    ] = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    suffix: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None
    ) = None
    metadata: Metadata | None = None
    tunesmith: JobExtension = JobExtension()

    @model_validator(mode="after")
    def _hyperparameters_once(self) -> "CreateFineTuningJobRequest":
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("'hyperparameters' or 'method', not both")
        return self

    def to_domain(self) -> JobRequest:
        name = self.method.type if self.method is not None else DEFAULT_METHOD
        hyperparameters = self.hyperparameters or METHODS[name].hyperparameters()
        if self.method is not None:
            hyperparameters = getattr(self.method, name).hyperparameters
        adapter = self.tunesmith.adapter
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            method=name,
            hyperparameters=hyperparameters.model_dump(),
            adapter=adapter.model_dump(exclude={"type"}) if adapter else None,
            training=self.tunesmith.training.model_dump(exclude_none=True),
            seed=self.seed,
            suffix=self.suffix,
            metadata=self.metadata,
        )


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


class JobDetails(Response):
    """What Tunesmith tells beyond OpenAI's fields."""

    base_model: str
    adapter: dict[str, Any]
    training: dict[str, Any]
    progress: JobProgress | None
    learning_rate: float | None


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
            hyperparameters=SupervisedHyperparameters(**job.hyperparameters),
            model=job.model,
            organization_id=organization_id,
            result_files=[job.result_file] if job.result_file else [],
            status=job.status,
            trained_tokens=job.trained_tokens if succeeded else None,
            training_file=job.training_file,
            validation_file=job.validation_file,
            seed=job.seed,
            estimated_finish=int(job.estimated_finish) if job.estimated_finish else None,
            metadata=job.metadata,
            method={
                "type": job.method,
                job.method: {"hyperparameters": job.hyperparameters},
            },
            tunesmith=JobDetails(
                base_model=job.base_model,
                adapter={"type": "lora"} | msgspec.to_builtins(_adapter_of(job)),
                training=job.extension["training"],
                progress=JobProgress(**job.progress) if job.progress else None,
                learning_rate=_learning_rate_of(job),
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


def _adapter_of(job: Job) -> LoraSpec:
    return msgspec.convert(job.extension["adapter"], LoraSpec)


def _learning_rate_of(job: Job) -> float | None:
    if job.spec is None:
        return None
    rate: float = msgspec.json.decode(job.spec)["hyperparameters"]["learning_rate"]
    return rate
