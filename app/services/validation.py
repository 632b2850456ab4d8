"""From `validating_files` to `queued`: the stored content is checked and the job fully resolved."""

import hashlib
from typing import Any

import msgspec

from app.base_models import Catalogue
from app.db.clock import now
from app.db.database import Database
from app.db.repositories import events, files, jobs
from app.db.repositories.files import File
from app.db.repositories.jobs import Job
from app.domain.classes import check_classes
from app.domain.datasets import read_records
from app.domain.errors import DomainError, InvalidFile, InvalidTransition, NotFound
from app.domain.job_spec import (
    AdapterRef,
    AdapterSpec,
    Adversarial,
    Anchor,
    DatasetRef,
    DeployCondition,
    EarlyStopping,
    EvaluationSpec,
    Hyperparameters,
    JobSpec,
    Replay,
)
from app.domain.job_state import JobStatus
from app.domain.methods import METHODS, Resolution, resolve_hyperparameters
from app.domain.methods import Hyperparameters as CommonHyperparameters
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS
from app.services.job_checks import MIN_RECORDS_TO_HOLD_OUT
from app.services.job_starts import START_FILE
from app.storage import Storage

# More than this many say nothing new when judged on.
MAX_HELD_OUT_RECORDS = 500

_CHUNK_BYTES = 1 << 20


def validate(database: Database, storage: Storage, catalogue: Catalogue, job: Job) -> None:
    """Check a job's files and queue it, or fail it with the reason. Safe to repeat."""
    try:
        training_file = _find(database, job, job.training_file, "training_file")
        _check_content(storage, training_file, "training_file")
        _check_classes(storage, job, training_file)
        validation_file = None
        if job.validation_file is not None:
            validation_file = _find(database, job, job.validation_file, "validation_file")
            _check_content(storage, validation_file, "validation_file")
        requested = METHODS[job.method].hyperparameters.model_validate(job.hyperparameters)
        resolutions = resolve_hyperparameters(requested, training_file.record_count or 1)
        holdout = _holdout(job, training_file)
        replay_file = None
        if (replay := job.extension["training"].get("replay")) is not None:
            param = "tunesmith.training.replay.file"
            replay_file = _find(database, job, replay["file"], param)
            _check_content(storage, replay_file, param)
        start_file = _start_file(database, job)
        if start_file is not None:
            _check_content(storage, start_file, START_FILE)
        spec = _spec(
            catalogue, job, training_file, validation_file, resolutions, holdout, replay_file
        )
    except DomainError as error:
        _fail(database, job, error)
        return
    _queue(database, job, spec, resolutions, holdout, start_file)


def _start_file(database: Database, job: Job) -> File | None:
    """Return the uploaded adapter that a job starts from."""
    start = msgspec.convert(job.start_from, AdapterRef | None)
    if start is None or start.file is None:
        return None
    return _find(database, job, start.file.file_id, START_FILE)


def _find(database: Database, job: Job, file_id: str, param: str) -> File:
    try:
        with database.read() as connection:
            return files.get(connection, job.project_id, file_id, param=param)
    except NotFound:
        raise InvalidFile(
            f"{param} {file_id} was deleted or has expired",
            param=param,
            code="file_not_found",
        ) from None


def _check_content(storage: Storage, file: File, param: str) -> None:
    digest = hashlib.sha256()
    with storage.open(file.storage_key) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        raise InvalidFile(
            f"the stored content of {file.id} is damaged: upload it again",
            param=param,
            code="file_damaged",
        )


def _check_classes(storage: Storage, job: Job, training_file: File) -> None:
    """Read as much of the file as it takes; a job that is continued has its classes already."""
    if job.start_from is not None or not TASKS[job.task].has_classes:
        return
    with storage.open(training_file.storage_key) as stream:
        check_classes(read_records(stream), job.extension["training"].get("class_weights"))


def _spec(
    catalogue: Catalogue,
    job: Job,
    training_file: File,
    validation_file: File | None,
    resolutions: tuple[Resolution, ...],
    holdout: Resolution,
    replay_file: File | None,
) -> JobSpec:
    base = catalogue.get(job.base_model)
    adapter = AdapterSpec.of_wire(job.extension["adapter"])
    evaluation = job.extension["evaluation"]
    resolved: dict[str, Any] = {resolution.name: resolution.value for resolution in resolutions}
    training = {"max_length_tokens": base.context_length} | job.extension["training"]
    share = training.pop("replay", {}).get("share", 0.0)
    replay = Replay(_reference(replay_file), share) if replay_file else None
    # An operator may have changed the catalogue since the job was created.
    training["max_length_tokens"] = min(training["max_length_tokens"], base.context_length)
    return JobSpec(
        job_id=job.id,
        base_model=job.base_model,
        method=job.method,
        training_file=_reference(training_file),
        validation_file=_reference(validation_file) if validation_file else None,
        start_from=msgspec.convert(job.start_from, AdapterRef | None),
        seed=job.seed,
        hyperparameters=Hyperparameters(
            num_epochs=resolved["n_epochs"],
            batch_size=resolved["batch_size"],
            learning_rate=base.learning_rate
            * PEFT_KINDS[adapter.type].learning_rate_factor
            * resolved["learning_rate_multiplier"],
            early_stopping=msgspec.convert(
                training.pop("early_stopping", None), EarlyStopping | None
            ),
            adversarial=msgspec.convert(training.pop("adversarial", None), Adversarial | None),
            anchor=msgspec.convert(training.pop("anchor", None), Anchor | None),
            replay=replay,
            **training,
        ),
        adapter=adapter,
        task=job.task,
        method_options={
            name: value
            for name, value in (job.extension["method"] | job.hyperparameters | resolved).items()
            if name not in CommonHyperparameters.model_fields
        },
        evaluation=EvaluationSpec(
            holdout=float(holdout.value),
            best_metric=evaluation.get("best_metric"),
            deploy_if=msgspec.convert(evaluation.get("deploy_if"), DeployCondition | None),
        ),
    )


def _holdout(job: Job, training_file: File) -> Resolution:
    """Return the share of the training file to judge on, and why it was chosen."""
    asked = job.extension["evaluation"].get("holdout", "auto")
    if job.validation_file is not None:
        return Resolution("holdout", 0.0, None)
    if asked != "auto":
        return Resolution("holdout", asked, None)
    records = training_file.record_count or 0
    if records < MIN_RECORDS_TO_HOLD_OUT:
        return Resolution("holdout", 0.0, f"{records} records: too few to spare any for judging")
    share = min(0.1, MAX_HELD_OUT_RECORDS / records)
    return Resolution(
        "holdout",
        share,
        f"{records} records and no validation file: {round(share * records)} of them are judged "
        "on instead of trained on",
    )


def _reference(file: File) -> DatasetRef:
    return DatasetRef(file.id, file.storage_key, file.sha256, file.record_count or 0)


def _queue(
    database: Database,
    job: Job,
    spec: JobSpec,
    resolutions: tuple[Resolution, ...],
    holdout: Resolution,
    start_file: File | None,
) -> None:
    try:
        with database.write() as connection:
            jobs.transition(
                connection,
                job.id,
                JobStatus.QUEUED,
                message="Files validated, moving job to queued state",
                source=JobStatus.VALIDATING_FILES,
                spec=spec.to_json(),
                hyperparameters=job.hyperparameters
                | {resolution.name: resolution.value for resolution in resolutions},
            )
            if start_file is not None and not (start_file.adapter or {}).get("base_model"):
                events.add(
                    connection,
                    job.id,
                    f"The adapter {start_file.id} names no base model: whether it was made for "
                    f"{job.base_model} cannot be checked beyond the shapes of its weights",
                    level="warn",
                )
            for resolution in (*resolutions, holdout):
                if resolution.reason is not None:
                    events.add(
                        connection,
                        job.id,
                        f"{resolution.name} = {resolution.value} (auto: {resolution.reason})",
                        data={
                            "hyperparameter": resolution.name,
                            "value": resolution.value,
                        },
                    )
    except InvalidTransition:
        return  # Cancelled, paused or validated by another meanwhile.


def _fail(database: Database, job: Job, error: DomainError) -> None:
    try:
        with database.write() as connection:
            jobs.transition(
                connection,
                job.id,
                JobStatus.FAILED,
                message=error.message,
                level="error",
                source=JobStatus.VALIDATING_FILES,
                error={
                    "code": error.code,
                    "message": error.message,
                    "param": error.param,
                },
                finished_at=now(),
            )
    except InvalidTransition:
        return
