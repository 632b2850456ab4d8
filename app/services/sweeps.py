"""Creating, cancelling and advancing sweeps. What comes next is decided in `app.domain.search`."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.clock import now
from app.db.database import Database
from app.db.repositories import events, files, jobs, keys, sweeps
from app.db.repositories.jobs import Job
from app.db.repositories.keys import Principal
from app.db.repositories.sweeps import NewSweep, Sweep, SweepTrial
from app.domain.errors import DomainError, InvalidInput, InvalidTransition
from app.domain.job_state import TERMINAL, JobStatus
from app.domain.methods import METHODS
from app.domain.peft_kinds import LORA, PEFT_KINDS
from app.domain.registry import resolve
from app.domain.sweeps import (
    MAX_GRID,
    Algorithm,
    Budget,
    Decision,
    Pruner,
    Search,
    Spaces,
    SweepStatus,
    Trial,
    TrialState,
    count_combinations,
    default_pruner,
    spaces_of,
)
from app.domain.tasks import TASKS
from app.services.jobs import (
    MAX_SEED,
    NEEDS_HELD_OUT_RECORDS,
    JobRequest,
    has_held_out_records,
    prepare,
)
from app.services.jobs import (
    create as create_job,
)

# By name, since Optuna brings NumPy: an API that sees no sweep does without both.
_DECIDE = "app.domain.search:decide"
_BEST_OF = "app.domain.search:best_of"


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


@dataclass(frozen=True, slots=True)
class _Ended:
    """What became of a trial whose job has ended."""

    number: int
    state: TrialState
    value: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """A sweep's rows, and what is to be done about them.

    Attributes:
        trials: as they are, with what became of those that ended.
        ended: those of them that the rows do not tell of yet.
    """

    trials: Sequence[Trial]
    ended: Sequence[_Ended]
    decision: Decision

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to write."""
        decision = self.decision
        is_decided = decision.prune or decision.judged or decision.start or decision.is_over
        return not (self.ended or is_decided)


def create(
    connection: Connection, catalogue: Catalogue, principal: Principal, request: SweepRequest
) -> Sweep:
    """Add a sweep, whose first trials the next round of the sweeper starts.

    Raises:
        InvalidInput: a trial could not be created as a job, or could not be judged; the message
            names the field.
    """
    for path in request.spaces:
        _locate(path)
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
    for trial in sweeps.list_trials(connection, sweep_id):
        if trial.state is not TrialState.RUNNING:
            continue
        if trial.job_id is not None:
            # It may have ended in this moment: then its model stays too.
            with suppress(InvalidTransition):
                _cancel_job(connection, trial.job_id, f"The sweep {sweep_id} was cancelled")
        reason = "the sweep was cancelled"
        sweeps.end_trial(connection, sweep_id, trial.number, TrialState.CANCELLED, reason=reason)
    return sweep


def advance(database: Database, catalogue: Catalogue, sweep_id: str) -> None:
    """Do what is due of a sweep: note what ended, prune, start trials, finish.

    Everything of a look is written in one transaction, and a look is a function of the rows: it
    may be repeated, interrupted at any point, or made by two processes at once.
    """
    # Imported before a transaction is open: it takes a moment.
    decide = resolve(_DECIDE)
    with database.read() as connection:
        sweep = sweeps.find(connection, sweep_id)
        if sweep is None or _look(connection, sweep, decide).is_quiet:
            return
    with database.write() as connection:
        sweep = sweeps.find(connection, sweep_id, for_update=True)
        if sweep is not None and sweep.status is SweepStatus.RUNNING:
            _write(connection, catalogue, sweep, _look(connection, sweep, decide))


def with_parameters(request: JobRequest, parameters: dict[str, Any]) -> JobRequest:
    """Return a job whose fields, named by dotted paths of the wire, have these values.

    Raises:
        InvalidInput: the values do not go together; the field is named.
    """
    changed: dict[str, Any] = {
        "hyperparameters": request.hyperparameters,
        "method_settings": request.method_settings,
        "adapter": request.adapter,
        "training": request.training,
    }
    for path, value in parameters.items():
        field, keys_below = _locate(path)
        changed[field] = _set(changed[field], keys_below, value)
    job = replace(request, **changed)
    _check(METHODS[job.method].settings, _settings(job), f"method.{job.method}")
    if job.adapter is not None:
        options = {key: value for key, value in job.adapter.items() if key != "type"}
        _check(PEFT_KINDS[job.adapter.get("type", LORA)].options, options, "tunesmith.adapter")
    return job


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
) -> jobs.NewJob:
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


def _look(connection: Connection, sweep: Sweep, decide: Callable[..., Decision]) -> _Look:
    search = _search(sweep)
    epochs = sweeps.list_epochs(connection, sweep.id)
    open_jobs = {job.id: job for job in sweeps.list_open_jobs(connection, sweep.id)}
    trials, ended = [], []
    for row in sweeps.list_trials(connection, sweep.id):
        measured = epochs.get(row.job_id or "", [])
        trial = _trial(search, row, measured)
        job = open_jobs.get(row.job_id or "")
        if job is not None and job.status in TERMINAL:
            ending = _ending(search, trial, job)
            ended.append(ending)
            trial = replace(trial, state=ending.state, value=ending.value)
        trials.append(trial)
    trained_tokens = sweeps.count_trained_tokens(connection, sweep.id)
    seconds = sweeps.seconds_since(connection, sweep.id)
    return _Look(trials, ended, decide(search, trials, trained_tokens, seconds))


def _search(sweep: Sweep) -> Search:
    return Search(
        spaces=spaces_of(sweep.parameters),
        metric=sweep.metric,
        algorithm=sweep.algorithm,
        pruner=sweep.pruner,
        max_trials=sweep.max_trials,
        max_parallel=sweep.max_parallel,
        seed=sweep.seed,
        budget=Budget(**sweep.budget) if sweep.budget else Budget(),
    )


def _trial(search: Search, row: SweepTrial, measured: list[dict[str, Any]]) -> Trial:
    return Trial(
        number=row.number,
        state=row.state,
        parameters=row.parameters,
        value=row.value,
        # By the names that a checkpoint has for what was measured on the held-out records.
        history=tuple(metrics.get(f"valid_{search.metric}") for metrics in measured),
        judged=row.judged,
    )


def _ending(search: Search, trial: Trial, job: Job) -> _Ended:
    if job.status is JobStatus.CANCELLED:
        return _Ended(trial.number, TrialState.CANCELLED, reason="its job was cancelled")
    if job.status is JobStatus.FAILED:
        reason = job.error["message"] if job.error else "its job failed"
        return _Ended(trial.number, TrialState.FAILED, reason=reason)
    value = _value(search, trial, job)
    if value is None:
        reason = f"its job did not measure {search.metric}"
        return _Ended(trial.number, TrialState.FAILED, reason=reason)
    return _Ended(trial.number, TrialState.SUCCEEDED, value=value)


def _value(search: Search, trial: Trial, job: Job) -> float | None:
    """Return the metric of the model that a job has published: its report tells."""
    told = ((job.report or {}).get("metrics") or {}).get(search.metric)
    if told is not None and told["tuned"] is not None:
        return float(told["tuned"])
    return trial.history[-1] if trial.history else None


def _write(connection: Connection, catalogue: Catalogue, sweep: Sweep, look: _Look) -> None:
    for ending in look.ended:
        sweeps.end_trial(
            connection,
            sweep.id,
            ending.number,
            ending.state,
            value=ending.value,
            reason=ending.reason,
        )
    decision = look.decision
    for number, epochs in decision.judged:
        sweeps.mark_judged(connection, sweep.id, number, epochs)
    job_ids = {row.number: row.job_id for row in sweeps.list_trials(connection, sweep.id)}
    for pruning in decision.prune:
        _prune(connection, sweep, pruning.number, job_ids[pruning.number], pruning.reason)
    for number, parameters in enumerate(decision.start, len(look.trials)):
        _start(connection, catalogue, sweep, number, parameters)
    best = resolve(_BEST_OF)(sweep.metric, look.trials)
    sweeps.set_best(connection, sweep.id, best.number if best else None)
    # One that was to be pruned may have ended first: what became of it is for the next look.
    if decision.is_over and not decision.prune:
        _finish(connection, sweep, best)


def _prune(
    connection: Connection, sweep: Sweep, number: int, job_id: str | None, reason: str
) -> None:
    assert job_id is not None
    with suppress(InvalidTransition):
        _cancel_job(connection, job_id, f"Trial {number} of sweep {sweep.id} was {reason}")
        sweeps.end_trial(connection, sweep.id, number, TrialState.PRUNED, reason=reason)


def _start(
    connection: Connection,
    catalogue: Catalogue,
    sweep: Sweep,
    number: int,
    parameters: dict[str, Any],
) -> None:
    """Add a trial with its job; if there can be none, the trial has failed."""
    principal = keys.principal_of(connection, sweep.project_id)
    base = JobRequest(**sweep.request)
    try:
        request = replace(
            with_parameters(base, parameters),
            # The same for all, so that they train and are judged on the same records.
            seed=base.seed if base.seed is not None else sweep.seed,
            suffix=f"{sweep.suffix}-{number}" if sweep.suffix else base.suffix,
        )
        job = create_job(connection, catalogue, principal, request, sweep_id=sweep.id)
    except DomainError as error:
        sweeps.add_trial(connection, sweep.id, number, None, parameters)
        sweeps.end_trial(connection, sweep.id, number, TrialState.FAILED, reason=error.message)
        return
    sweeps.add_trial(connection, sweep.id, number, job.id, parameters)
    told = ", ".join(f"{path} = {value!r}" for path, value in sorted(parameters.items()))
    events.add(
        connection,
        job.id,
        f"Trial {number} of sweep {sweep.id}: {told}",
        data={"sweep": sweep.id, "trial": number, "parameters": parameters},
    )


def _finish(connection: Connection, sweep: Sweep, best: Trial | None) -> None:
    if best is not None:
        sweeps.finish(connection, sweep.id, SweepStatus.SUCCEEDED)
        return
    reasons = [row.reason for row in sweeps.list_trials(connection, sweep.id) if row.reason]
    message = "No trial succeeded." + (f" The first: {reasons[0]}" if reasons else "")
    error = {"code": "no_trial_succeeded", "message": message, "param": None}
    sweeps.finish(connection, sweep.id, SweepStatus.FAILED, error=error)


def _cancel_job(connection: Connection, job_id: str, message: str) -> None:
    jobs.transition(
        connection,
        job_id,
        JobStatus.CANCELLED,
        message=message,
        finished_at=now(),
        estimated_finish=None,
    )


def _locate(path: str) -> tuple[str, list[str]]:
    """Return the field of a JobRequest that a path of the wire leads into, and the way from there.

    Raises:
        InvalidInput: it leads to nothing that can be searched.
    """
    match path.split("."):
        case ["method", _, "hyperparameters", *below] if below:
            return "hyperparameters", below
        case ["method", _, *below] if below:
            return "method_settings", below
        case ["tunesmith", "adapter", *below]:
            return "adapter", below
        case ["tunesmith", "training", *below] if below:
            return "training", below
    raise InvalidInput(
        f"parameters.{path} cannot be searched: expected a field below "
        "method.<type>.hyperparameters, tunesmith.adapter or tunesmith.training",
        param=f"parameters.{path}",
        code="unknown_field",
    )


def _set(value: Any, below: list[str], new: Any) -> Any:
    if not below:
        return new
    fields = value if isinstance(value, dict) else {}
    return fields | {below[0]: _set(fields.get(below[0]), below[1:], new)}


def _settings(job: JobRequest) -> dict[str, Any]:
    return {**job.method_settings, "hyperparameters": job.hyperparameters}


def _check(model: Any, value: dict[str, Any], param: str) -> None:
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([param, *(str(part) for part in first["loc"])])
        raise InvalidInput(f"{field}: {first['msg']}", param=field) from None
