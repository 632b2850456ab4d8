"""Wire types of sweeps and of their trials."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Response
from app.api.schemas.sweep_requests import SweepBudget
from app.db.repositories.sweep_trials import SweepTrial
from app.db.repositories.sweeps import Standing, Sweep
from app.domain.metrics import METRICS
from app.domain.search_spaces import Space
from app.domain.sweeps import Algorithm, Pruner, SweepStatus, TrialState


class FineTuningSweepTrial(Response):
    """One combination of values; its job is a job like any other."""

    id: str
    object: Literal["fine_tuning.sweep.trial"] = "fine_tuning.sweep.trial"
    sweep_id: str
    number: int
    created_at: int
    finished_at: int | None
    state: TrialState
    parameters: dict[str, Any]
    value: Annotated[float | None, Field(description="The sweep's metric, of the trial's model.")]
    fine_tuning_job_id: Annotated[
        str | None, Field(description="Null if no job could be created with these values.")
    ]
    reason: Annotated[str | None, Field(description="Why it has no value.")]

    @classmethod
    def of(cls, trial: SweepTrial) -> "FineTuningSweepTrial":
        return cls(
            id=trial.id,
            sweep_id=trial.sweep_id,
            number=trial.number,
            created_at=int(trial.created_at),
            finished_at=_seconds(trial.finished_at),
            state=trial.state,
            parameters=trial.parameters,
            value=trial.value,
            fine_tuning_job_id=trial.job_id,
            reason=trial.reason,
        )


class FineTuningSweepTrialList(Response):
    object: ListObject = "list"
    data: list[FineTuningSweepTrial]
    first_id: str | None
    last_id: str | None
    has_more: bool


class TrialCounts(Response):
    """How many trials are in each state."""

    running: int
    succeeded: int
    pruned: int
    failed: int
    cancelled: int


class SweepError(Response):
    """Why a sweep failed."""

    code: str
    message: str
    param: str | None


class FineTuningSweep(Response):
    """A sweep."""

    id: str
    object: Literal["fine_tuning.sweep"] = "fine_tuning.sweep"
    created_at: int
    finished_at: int | None
    status: SweepStatus
    error: SweepError | None
    job: Annotated[dict[str, Any], Field(description="The job's request, as it was given.")]
    parameters: dict[str, Space]
    metric: str
    direction: Literal["maximize", "minimize"]
    algorithm: Algorithm
    pruner: Pruner
    max_trials: int
    max_parallel: int
    budget: SweepBudget | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    trials: TrialCounts
    best_trial: Annotated[FineTuningSweepTrial | None, Field(description="The best so far.")]
    best_job: str | None
    best_model: Annotated[
        str | None, Field(description="The `fine_tuned_model` of the best trial's job.")
    ]

    @classmethod
    def of(cls, sweep: Sweep, standing: Standing) -> "FineTuningSweep":
        best = standing.best
        return cls(
            id=sweep.id,
            created_at=int(sweep.created_at),
            finished_at=_seconds(sweep.finished_at),
            status=sweep.status,
            error=SweepError(**sweep.error) if sweep.error else None,
            job=sweep.job,
            parameters=sweep.parameters,
            metric=sweep.metric,
            direction="maximize" if METRICS[sweep.metric].is_higher_better else "minimize",
            algorithm=sweep.algorithm,
            pruner=sweep.pruner,
            max_trials=sweep.max_trials,
            max_parallel=sweep.max_parallel,
            budget=SweepBudget(**sweep.budget) if sweep.budget else None,
            seed=sweep.seed,
            suffix=sweep.suffix,
            metadata=sweep.metadata,
            trials=TrialCounts(**{str(state): count for state, count in standing.counts.items()}),
            best_trial=FineTuningSweepTrial.of(best) if best else None,
            best_job=best.job_id if best else None,
            best_model=standing.best_model,
        )


class FineTuningSweepList(Response):
    object: ListObject = "list"
    data: list[FineTuningSweep]
    has_more: bool


def _seconds(moment: float | None) -> int | None:
    return int(moment) if moment is not None else None
