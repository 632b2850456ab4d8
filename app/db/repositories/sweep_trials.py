"""Trials of sweeps. A trial and its job are written in one transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update

from app.db.clock import now
from app.db.repositories import jobs as job_rows
from app.db.repositories.jobs import Job
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import checkpoints, jobs, sweep_trials
from app.domain.ids import new_id
from app.domain.sweeps import TrialState


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """One trial, as it is stored."""

    id: str
    sweep_id: str
    number: int
    job_id: str | None
    parameters: dict[str, Any]
    state: TrialState
    value: float | None
    reason: str | None
    judged: int
    created_at: float
    finished_at: float | None


def add(
    connection: Connection,
    sweep_id: str,
    number: int,
    job_id: str | None,
    parameters: dict[str, Any],
) -> SweepTrial:
    row = connection.execute(
        insert(sweep_trials)
        .values(
            id=new_id("fttrial-"),
            sweep_id=sweep_id,
            number=number,
            job_id=job_id,
            parameters=parameters,
            state=TrialState.RUNNING,
            created_at=now(),
        )
        .returning(sweep_trials)
    ).one()
    return from_row(row)


def end(
    connection: Connection,
    sweep_id: str,
    number: int,
    state: TrialState,
    *,
    value: float | None = None,
    reason: str | None = None,
) -> None:
    """Write down what became of a running trial."""
    connection.execute(
        update(sweep_trials)
        .where(
            sweep_trials.c.sweep_id == sweep_id,
            sweep_trials.c.number == number,
            sweep_trials.c.state == TrialState.RUNNING,
        )
        .values(state=state, value=value, reason=reason, finished_at=now())
    )


def mark_judged(connection: Connection, sweep_id: str, number: int, epochs: int) -> None:
    """Note that a pruner has judged a trial up to an epoch."""
    connection.execute(
        update(sweep_trials)
        .where(sweep_trials.c.sweep_id == sweep_id, sweep_trials.c.number == number)
        .values(judged=epochs)
    )


def list_all(connection: Connection, sweep_id: str) -> list[SweepTrial]:
    """Return every trial of a sweep, by number."""
    query = select(sweep_trials).where(sweep_trials.c.sweep_id == sweep_id)
    return [from_row(row) for row in connection.execute(query.order_by(sweep_trials.c.number))]


def list_page(
    connection: Connection, sweep_id: str, *, after: str | None, limit: int
) -> Page[SweepTrial]:
    """Return the trials of a sweep, newest first."""
    query = select(sweep_trials).where(sweep_trials.c.sweep_id == sweep_id)
    page = fetch_page(connection, sweep_trials, query, keys=("number",), after=after, limit=limit)
    return Page([from_row(row) for row in page.items], page.has_more)


def list_open_jobs(connection: Connection, sweep_id: str) -> list[Job]:
    """Return the jobs of the trials that are not known to have ended."""
    query = _of_sweep(select(jobs), jobs.c.id, sweep_id)
    rows = connection.execute(query.where(sweep_trials.c.state == TrialState.RUNNING))
    return [job_rows.from_row(row) for row in rows]


def list_epochs(connection: Connection, sweep_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return what each job of a sweep measured at the end of its epochs, by job and in order.

    A checkpoint is named at the end of each epoch, under the lease: there is one row for each,
    however often the epoch was taken.
    """
    query = _of_sweep(
        select(checkpoints.c.job_id, checkpoints.c.metrics), checkpoints.c.job_id, sweep_id
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query.order_by(checkpoints.c.step)):
        found.setdefault(row.job_id, []).append(row.metrics)
    return found


def count_trained_tokens(connection: Connection, sweep_id: str) -> int:
    """Return how many tokens the jobs of a sweep have trained on so far."""
    total = select(func.coalesce(func.sum(jobs.c.trained_tokens), 0))
    return int(connection.execute(_of_sweep(total, jobs.c.id, sweep_id)).scalar_one())


def _of_sweep(query: Select[Any], job_id: Any, sweep_id: str) -> Select[Any]:
    return query.join(sweep_trials, sweep_trials.c.job_id == job_id).where(
        sweep_trials.c.sweep_id == sweep_id
    )


def from_row(row: Any) -> SweepTrial:
    """Return the trial of a row that holds every column of the table."""
    values = dict(row._mapping)
    values["state"] = TrialState(values["state"])
    return SweepTrial(**values)
