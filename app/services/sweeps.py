"""Creating and cancelling sweeps; what is refused leaves no trace.

What becomes of a sweep in between is in `app.services.sweep_looks`.
"""

import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.clock import now
from app.db.repositories import files, jobs, sweep_trials, sweeps
from app.db.repositories.jobs import NewJob
from app.db.repositories.keys import Principal
from app.db.repositories.sweeps import NewSweep, Sweep
from app.domain.errors import InvalidInput, InvalidTransition
from app.domain.job_state import JobStatus
from app.domain.search_spaces import Spaces, count_combinations
from app.domain.sweeps import (
    MAX_GRID,
    Algorithm,
    Budget,
    Pruner,
    SweepStatus,
    TrialState,
    default_pruner,
)
from app.domain.tasks import TASKS
from app.services.job_checks import NEEDS_HELD_OUT_RECORDS, JobRequest, has_held_out_records
from app.services.jobs import MAX_SEED, prepare
from app.services.sweep_parameters import locate, with_parameters


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep as its user asked for it, already checked for types and bounds.

    Attributes:
        job: what every trial has in common.
        body: the same as it was written.
        spaces: by dotted path of the request's field.
        metric: None: the main one of the task.
        pruner: None: the usual one of the algorithm.
    """

    job: JobRequest
    body: dict[str, Any]
    spaces: Spaces
    metric: str | None
    algorithm: Algorithm
    pruner: Pruner | None
    max_trials: int
    max_parallel: int
    budget: Budget | None
    seed: int | None
    suffix: str | None
    metadata: dict[str, str] | None


def create(
    connection: Connection, catalogue: Catalogue, principal: Principal, request: SweepRequest
) -> Sweep:
    """Add a sweep, whose first trials the next round of the sweeper starts.

    Raises:
        InvalidInput: a trial could not be created as a job, or could not be judged; the message
            names the field.
    """
    for path in request.spaces:
        locate(path)
    _check_grid(request)
    first = {path: space.extremes()[0] for path, space in request.spaces.items()}
    job = _prepare(connection, catalogue, principal, request, first, None)
    for path, space in request.spaces.items():
        for value in space.extremes()[1:]:
            _prepare(connection, catalogue, principal, request, first | {path: value}, path)
    file = files.get(connection, principal.project_id, request.job.training_file)
    if not has_held_out_records(request.job, file):
        param = "job.validation_file"
        raise InvalidInput(f"a sweep {NEEDS_HELD_OUT_RECORDS}", param=param)
    metric = request.metric or TASKS[job.extension["task"]].main_metric
    # What is compared are the models that the trials publish: the best of each.
    evaluation = {"best_metric": metric} | request.job.evaluation
    return sweeps.add(
        connection,
        NewSweep(
            project_id=principal.project_id,
            job=request.body,
            request=asdict(replace(request.job, evaluation=evaluation)),
            parameters={path: space.model_dump() for path, space in request.spaces.items()},
            metric=metric,
            algorithm=request.algorithm,
            pruner=request.pruner or default_pruner(request.algorithm),
            max_trials=request.max_trials,
            max_parallel=request.max_parallel,
            budget=asdict(request.budget) if request.budget else None,
            seed=request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
            suffix=request.suffix,
            metadata=request.metadata,
        ),
    )


def cancel(connection: Connection, project_id: str, sweep_id: str) -> Sweep:
    """Cancel a sweep and those of its jobs that have not ended; what has been found stays.

    Raises:
        NotFound: no such sweep.
        InvalidTransition: it has ended already.
    """
    sweeps.get(connection, project_id, sweep_id, for_update=True)
    sweep = sweeps.finish(connection, sweep_id, SweepStatus.CANCELLED)
    for trial in sweep_trials.list_all(connection, sweep_id):
        if trial.state is not TrialState.RUNNING:
            continue
        if trial.job_id is not None:
            # It may have ended in this moment: then its model stays too.
            with suppress(InvalidTransition):
                cancel_job(connection, trial.job_id, f"The sweep {sweep_id} was cancelled")
        reason = "the sweep was cancelled"
        sweep_trials.end(connection, sweep_id, trial.number, TrialState.CANCELLED, reason=reason)
    return sweep


def _check_grid(request: SweepRequest) -> None:
    if request.algorithm != "grid":
        return
    for path, space in request.spaces.items():
        if space.size is None:
            raise InvalidInput(
                f"parameters.{path} has no end of values: a grid needs `step`, or `choices`",
                param=f"parameters.{path}",
            )
    size = count_combinations(request.spaces)
    if size is None or size > MAX_GRID:
        raise InvalidInput(
            f"the grid has {size:,} points; the limit is {MAX_GRID:,}", param="parameters"
        )


def _prepare(
    connection: Connection,
    catalogue: Catalogue,
    principal: Principal,
    request: SweepRequest,
    parameters: dict[str, Any],
    path: str | None,
) -> NewJob:
    """Return a trial's job without adding it; what is refused names the field of the sweep.

    Args:
        path: the parameter that is tried; None: none but the job itself.
    """
    try:
        return prepare(connection, catalogue, principal, with_parameters(request.job, parameters))
    except InvalidInput as error:
        at_fault = path or next((one for one in parameters if one == error.param), None)
        if at_fault is None:
            raise InvalidInput(error.message, param=f"job.{error.param}", code=error.code) from None
        raise InvalidInput(
            f"parameters.{at_fault}: {parameters[at_fault]!r} cannot be used: {error.message}",
            param=f"parameters.{at_fault}",
            code=error.code,
        ) from None


def cancel_job(connection: Connection, job_id: str, message: str) -> None:
    """Cancel the job of a trial. Raises: InvalidTransition if it has ended already."""
    jobs.transition(
        connection,
        job_id,
        JobStatus.CANCELLED,
        message=message,
        finished_at=now(),
        estimated_finish=None,
    )
