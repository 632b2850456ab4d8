"""Looks at sweeps: what their rows say is to be done, written in one transaction."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.database import Database
from app.db.repositories import events, keys, sweep_trials, sweeps
from app.db.repositories.jobs import Job
from app.db.repositories.sweep_trials import SweepTrial
from app.db.repositories.sweeps import Sweep
from app.domain.errors import DomainError, InvalidTransition
from app.domain.job_state import TERMINAL, JobStatus
from app.domain.metrics import METRICS
from app.domain.registry import resolve
from app.domain.search_spaces import spaces_of
from app.domain.sweeps import Budget, Decision, Search, SweepStatus, Trial, TrialState
from app.services import jobs
from app.services.job_checks import JobRequest
from app.services.sweep_parameters import with_parameters
from app.services.sweeps import cancel_job

# By name, since Optuna brings NumPy: an API that sees no sweep does without both.
_DECIDE = "app.domain.search:decide"


_BEST_OF = "app.domain.search:best_of"


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


def _look(connection: Connection, sweep: Sweep, decide: Callable[..., Decision]) -> _Look:
    search = _search(sweep)
    epochs = sweep_trials.list_epochs(connection, sweep.id)
    open_jobs = {job.id: job for job in sweep_trials.list_open_jobs(connection, sweep.id)}
    trials, ended = [], []
    for row in sweep_trials.list_all(connection, sweep.id):
        measured = epochs.get(row.job_id or "", [])
        job = open_jobs.get(row.job_id or "")
        trial = _trial(search, row, measured, job)
        if job is not None and job.status in TERMINAL:
            ending = _ending(search, trial, job)
            ended.append(ending)
            trial = replace(trial, state=ending.state, value=ending.value)
        trials.append(trial)
    trained_tokens = sweep_trials.count_trained_tokens(connection, sweep.id)
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


def _trial(
    search: Search, row: SweepTrial, measured: list[dict[str, Any]], job: Job | None
) -> Trial:
    num_epochs = job.hyperparameters["n_epochs"] if job is not None else None
    return Trial(
        number=row.number,
        state=row.state,
        parameters=row.parameters,
        value=row.value,
        # By the names that a checkpoint has for what was measured on the held-out records.
        history=tuple(metrics.get(f"valid_{search.metric}") for metrics in measured),
        judged=row.judged,
        # Until the job is validated, it can still be `auto`.
        num_epochs=num_epochs if isinstance(num_epochs, int) else None,
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
    """Return the metric of the model that a job has published: its report tells, if it can."""
    told = ((job.report or {}).get("metrics") or {}).get(search.metric)
    if told is not None and told["tuned"] is not None:
        return float(told["tuned"])
    if job.extension["evaluation"].get("best_metric") != search.metric:
        return trial.history[-1] if trial.history else None
    best = None
    for value in trial.history:
        if METRICS[search.metric].is_improved(best, value):
            best = value
    return best


def _write(connection: Connection, catalogue: Catalogue, sweep: Sweep, look: _Look) -> None:
    for ending in look.ended:
        sweep_trials.end(
            connection,
            sweep.id,
            ending.number,
            ending.state,
            value=ending.value,
            reason=ending.reason,
        )
    decision = look.decision
    for number, epochs in decision.judged:
        sweep_trials.mark_judged(connection, sweep.id, number, epochs)
    job_ids = {row.number: row.job_id for row in sweep_trials.list_all(connection, sweep.id)}
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
        cancel_job(connection, job_id, f"Trial {number} of sweep {sweep.id} was {reason}")
        sweep_trials.end(connection, sweep.id, number, TrialState.PRUNED, reason=reason)


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
        job = jobs.create(connection, catalogue, principal, request, sweep_id=sweep.id)
    except DomainError as error:
        sweep_trials.add(connection, sweep.id, number, None, parameters)
        sweep_trials.end(connection, sweep.id, number, TrialState.FAILED, reason=error.message)
        return
    sweep_trials.add(connection, sweep.id, number, job.id, parameters)
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
    reasons = [row.reason for row in sweep_trials.list_all(connection, sweep.id) if row.reason]
    message = "No trial succeeded." + (f" The first: {reasons[0]}" if reasons else "")
    error = {"code": "no_trial_succeeded", "message": message, "param": None}
    sweeps.finish(connection, sweep.id, SweepStatus.FAILED, error=error)
