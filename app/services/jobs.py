"""Creating, cancelling, pausing and resuming jobs; what is refused leaves no trace."""

import secrets
from dataclasses import asdict, replace

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.clock import now
from app.db.repositories import files, jobs
from app.db.repositories.files import File
from app.db.repositories.jobs import Job, NewJob
from app.db.repositories.keys import Principal
from app.domain.combinations import check_combination, check_continuation
from app.domain.errors import InvalidInput, InvalidTransition, NotFound
from app.domain.ids import fine_tuned_model_name, new_id
from app.domain.job_spec import AdapterSpec
from app.domain.job_state import JobStatus
from app.domain.peft_kinds import LORA
from app.domain.tasks import choose_task
from app.domain.training_options import check_training_options
from app.services import models
from app.services.files import FINE_TUNE
from app.services.job_checks import (
    JobRequest,
    check_batch_size,
    check_evaluation,
    check_layers,
    check_length,
    check_method,
    check_metrics,
    check_records,
)
from app.services.job_starts import Start, find_start
from app.services.models import Model

MAX_SEED = 2**31 - 1
PAUSE_REQUESTED = "Pause requested: the job pauses at the end of the running step"


def create(
    connection: Connection,
    catalogue: Catalogue,
    principal: Principal,
    request: JobRequest,
    *,
    sweep_id: str | None = None,
) -> Job:
    """Add a job in `validating_files`.

    Args:
        sweep_id: of the sweep that it is a trial of.

    Raises:
        InvalidInput: no such file or model in this project, or the parts do not fit together;
            the message names the field.
    """
    job = prepare(connection, catalogue, principal, request)
    if sweep_id is not None:
        job = replace(job, extension=job.extension | {"sweep": sweep_id})
    return jobs.add(connection, job)


def prepare(
    connection: Connection,
    catalogue: Catalogue,
    principal: Principal,
    request: JobRequest,
) -> NewJob:
    """Return what `create` would add, and write nothing. Raises: InvalidInput, as it does."""
    try:
        model = models.find(connection, catalogue, principal.project_id, request.model)
    except NotFound as error:
        known = ", ".join(catalogue.models)
        raise InvalidInput(
            f"{error.message} Base models here: {known}.",
            param="model",
            code="model_not_found",
        ) from None
    training_file = _dataset(connection, principal, request.training_file, "training_file")
    start = find_start(
        connection,
        principal.project_id,
        model,
        file_id=request.start_file,
        has_adapter=request.adapter is not None,
    )
    task = _task(model, request, training_file, start)
    adapter = request.adapter or {"type": LORA}
    if start is not None:
        adapter = start.adapter
        check_continuation(AdapterSpec.of_wire(adapter), start.param)
    spec = AdapterSpec.of_wire(adapter)
    check_combination(task, request.method, spec)
    check_records(task, request.method, training_file, "training_file")
    files_by_field = {"training_file": training_file}
    if request.validation_file is not None:
        file = _dataset(connection, principal, request.validation_file, "validation_file")
        check_records(task, request.method, file, "validation_file")
        files_by_field["validation_file"] = file
    if (replay := request.training.get("replay")) is not None:
        param = "tunesmith.training.replay.file"
        check_records(
            task, request.method, _dataset(connection, principal, replay["file"], param), param
        )
    check_batch_size(request, training_file)
    check_length(request, model)
    check_layers(request, model, spec, is_continued=start is not None)
    check_evaluation(request, training_file)
    check_metrics(task, request)
    check_training_options(
        task,
        request.method,
        spec,
        request.training,
        is_continued=start is not None,
    )
    check_method(request, model, spec, files_by_field)
    job_id = new_id("ftjob-")
    seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1)
    return NewJob(
        id=job_id,
        project_id=principal.project_id,
        model=request.model,
        base_model=model.base.id,
        start_from=asdict(start.ref) if start else None,
        method=request.method,
        hyperparameters=request.hyperparameters,
        extension={
            "task": task,
            "method": request.method_settings,
            "adapter": adapter,
            "training": request.training,
            "evaluation": request.evaluation,
        },
        training_file=request.training_file,
        validation_file=request.validation_file,
        seed=seed,
        metadata=request.metadata,
        output_model=fine_tuned_model_name(
            model.base.id, principal.organization_name, request.suffix, job_id
        ),
    )


def cancel(connection: Connection, project_id: str, job_id: str) -> Job:
    """Cancel a job that has not ended; a running one stops at its next step.

    Raises:
        NotFound: no such job.
        InvalidTransition: the job has ended already.
    """
    jobs.get(connection, project_id, job_id)
    return jobs.transition(
        connection,
        job_id,
        JobStatus.CANCELLED,
        message="Fine-tuning job cancelled by its user",
        finished_at=now(),
        estimated_finish=None,
    )


def pause(connection: Connection, project_id: str, job_id: str) -> Job:
    """Pause a job: at once while it waits, else at the running step's end, with a checkpoint.

    Raises:
        NotFound: no such job.
        InvalidTransition: it has ended, or is paused already.
    """
    job = jobs.get(connection, project_id, job_id, for_update=True)
    if job.status is not JobStatus.RUNNING:
        message = "Fine-tuning job paused by its user"
        return jobs.transition(connection, job_id, JobStatus.PAUSED, message=message)
    if job.pause_requested:
        raise InvalidTransition(f"Job {job_id} is about to pause already.")
    return jobs.request_pause(connection, job_id, True, PAUSE_REQUESTED)


def resume(connection: Connection, project_id: str, job_id: str) -> Job:
    """Queue a paused job again, to go on from its checkpoint; or take back a pause.

    Raises:
        NotFound: no such job.
        InvalidTransition: it is not paused, nor about to be.
    """
    job = jobs.get(connection, project_id, job_id, for_update=True)
    if job.status is JobStatus.RUNNING and job.pause_requested:
        message = "Resumed before the pause took effect"
        return jobs.request_pause(connection, job_id, False, message)
    if job.status is not JobStatus.PAUSED:
        raise InvalidTransition(f"Job {job_id} is {job.status}: only a paused job can be resumed.")
    return jobs.transition(
        connection,
        job_id,
        JobStatus.VALIDATING_FILES if job.spec is None else JobStatus.QUEUED,
        message="Fine-tuning job resumed by its user",
        source=JobStatus.PAUSED,
        dispatched_at=None,
    )


def _dataset(connection: Connection, principal: Principal, file_id: str, param: str) -> File:
    try:
        file = files.get(connection, principal.project_id, file_id)
    except NotFound as error:
        raise InvalidInput(error.message, param=param, code="file_not_found") from None
    if file.purpose != FINE_TUNE:
        raise InvalidInput(
            f"{param} {file_id} has purpose {file.purpose!r}; expected {FINE_TUNE!r}",
            param=param,
        )
    return file


def _task(model: Model, request: JobRequest, training_file: File, start: Start | None) -> str:
    """Return the task that was asked for, or the only one that fits."""
    asked = request.task
    if start is not None and start.task is not None:
        if asked not in (None, start.task):
            raise InvalidInput(
                f"{start.name!r} was fine-tuned for {start.task}; a job that starts from it cannot "
                f"be for {asked}",
                param="tunesmith.task",
            )
        asked = start.task
    task = asked or choose_task(model.base.tasks, request.method, training_file.record_kind or "")
    if task not in model.base.tasks:
        raise InvalidInput(
            f"{request.model!r} cannot be fine-tuned for {task}; it can for "
            f"{', '.join(model.base.tasks)}",
            param="tunesmith.task",
        )
    if start is not None:
        start.check_task(task)
    return task
