"""Sweeps, and how they stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.repositories.sweep_trials import SweepTrial
from app.db.tables import jobs, sweep_trials, sweeps
from app.domain.errors import InvalidTransition, NotFound
from app.domain.ids import new_id
from app.domain.sweeps import SweepStatus, TrialState


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep, as it is stored."""

    id: str
    project_id: str
    status: SweepStatus
    job: dict[str, Any]
    request: dict[str, Any]
    parameters: dict[str, Any]
    metric: str
    algorithm: Any
    pruner: Any
    max_trials: int
    max_parallel: int
    budget: dict[str, Any] | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    best_trial: int | None
    error: dict[str, Any] | None
    created_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class NewSweep:
    """What a sweep needs at birth; it is running from then on."""

    project_id: str
    job: dict[str, Any]
    request: dict[str, Any]
    parameters: dict[str, Any]
    metric: str
    algorithm: str
    pruner: str
    max_trials: int
    max_parallel: int
    budget: dict[str, Any] | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a sweep stands: its trials by state, the best of them, and the model of that one."""

    counts: dict[TrialState, int]
    best: SweepTrial | None
    best_model: str | None


def add(connection: Connection, sweep: NewSweep) -> Sweep:
    row = connection.execute(
        insert(sweeps)
        .values(
            id=new_id("ftsweep-"),
            project_id=sweep.project_id,
            status=SweepStatus.RUNNING,
            job=sweep.job,
            request=sweep.request,
            parameters=sweep.parameters,
            metric=sweep.metric,
            algorithm=sweep.algorithm,
            pruner=sweep.pruner,
            max_trials=sweep.max_trials,
            max_parallel=sweep.max_parallel,
            budget=sweep.budget,
            seed=sweep.seed,
            suffix=sweep.suffix,
            metadata=sweep.metadata,
            created_at=now(),
        )
        .returning(sweeps)
    ).one()
    return _sweep(row)


def get(
    connection: Connection, project_id: str, sweep_id: str, *, for_update: bool = False
) -> Sweep:
    """Return a sweep of the project.

    Args:
        for_update: nobody else may change the row before the end of the transaction.

    Raises:
        NotFound: there is none.
    """
    sweep = find(connection, sweep_id, for_update=for_update)
    if sweep is None or sweep.project_id != project_id:
        raise NotFound(f"Could not find sweep: {sweep_id!r}", param="sweep_id")
    return sweep


def find(connection: Connection, sweep_id: str, *, for_update: bool = False) -> Sweep | None:
    query = select(sweeps).where(sweeps.c.id == sweep_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return _sweep(row) if row else None


def list_page(
    connection: Connection, project_id: str, *, after: str | None, limit: int
) -> Page[Sweep]:
    """Return the project's sweeps, newest first."""
    query = select(sweeps).where(sweeps.c.project_id == project_id)
    keys = ("created_at", "id")
    page = fetch_page(connection, sweeps, query, keys=keys, after=after, limit=limit)
    return Page([_sweep(row) for row in page.items], page.has_more)


def list_running(connection: Connection, limit: int) -> list[str]:
    """Return the ids of the oldest sweeps under way."""
    running = select(sweeps.c.id).where(sweeps.c.status == SweepStatus.RUNNING)
    return list(connection.scalars(running.order_by(sweeps.c.created_at).limit(limit)))


def finish(
    connection: Connection,
    sweep_id: str,
    status: SweepStatus,
    *,
    error: dict[str, Any] | None = None,
) -> Sweep:
    """End a sweep. Raises: InvalidTransition if it has ended already."""
    row = connection.execute(
        update(sweeps)
        .where(sweeps.c.id == sweep_id, sweeps.c.status == SweepStatus.RUNNING)
        .values(status=status, error=error, finished_at=now())
        .returning(sweeps)
    ).one_or_none()
    if row is None:
        current = connection.scalar(select(sweeps.c.status).where(sweeps.c.id == sweep_id))
        raise InvalidTransition(f"Sweep {sweep_id} is {current} already.")
    return _sweep(row)


def set_best(connection: Connection, sweep_id: str, number: int | None) -> None:
    connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(best_trial=number))


def seconds_since(connection: Connection, sweep_id: str) -> float:
    """Return for how long a sweep has been there."""
    age = select(now() - sweeps.c.created_at).where(sweeps.c.id == sweep_id)
    return float(connection.execute(age).scalar_one())


def standings(connection: Connection, listed: Sequence[Sweep]) -> dict[str, Standing]:
    """Return how sweeps stand, by id."""
    ids = [sweep.id for sweep in listed]
    counts = {sweep_id: dict.fromkeys(TrialState, 0) for sweep_id in ids}
    grouped = select(sweep_trials.c.sweep_id, sweep_trials.c.state, func.count().label("count"))
    for row in connection.execute(
        grouped.where(sweep_trials.c.sweep_id.in_(ids)).group_by(
            sweep_trials.c.sweep_id, sweep_trials.c.state
        )
    ):
        counts[row.sweep_id][TrialState(row.state)] = int(row._mapping["count"])
    best: dict[str, tuple[SweepTrial, str]] = {}
    bests = (
        select(sweep_trials, jobs.c.output_model)
        .join(sweeps, sweeps.c.id == sweep_trials.c.sweep_id)
        .join(jobs, jobs.c.id == sweep_trials.c.job_id)
        .where(sweeps.c.id.in_(ids), sweeps.c.best_trial == sweep_trials.c.number)
    )
    for row in connection.execute(bests):
        values = dict(row._mapping)
        model = values.pop("output_model")
        best[row.sweep_id] = (SweepTrial(**values | {"state": TrialState(row.state)}), model)
    return {
        sweep_id: Standing(counts[sweep_id], *best.get(sweep_id, (None, None))) for sweep_id in ids
    }


def is_model_needed(connection: Connection, project_id: str, name: str) -> bool:
    """Say whether the next trial of a sweep under way would start from a model."""
    query = select(sweeps.c.id).where(
        sweeps.c.project_id == project_id,
        sweeps.c.status == SweepStatus.RUNNING,
        sweeps.c.request["model"].as_string() == name,
    )
    return connection.scalar(query.limit(1)) is not None


def _sweep(row: Any) -> Sweep:
    values = dict(row._mapping)
    values["status"] = SweepStatus(values["status"])
    return Sweep(**values)
