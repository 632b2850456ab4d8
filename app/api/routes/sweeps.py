"""Routes of sweeps, which search the best hyperparameters of a job, and of their trials."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep, SweeperDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.common import errors
from app.api.schemas.sweep_requests import EXAMPLE, CreateFineTuningSweepRequest
from app.api.schemas.sweeps import (
    FineTuningSweep,
    FineTuningSweepList,
    FineTuningSweepTrial,
    FineTuningSweepTrialList,
)
from app.db.repositories import sweep_trials
from app.db.repositories import sweeps as rows
from app.db.repositories.sweeps import Sweep
from app.services import sweeps

router = APIRouter(prefix="/v1/fine_tuning/sweeps", tags=["Sweeps"])


@router.post(
    "",
    operation_id="createFineTuningSweep",
    summary="Create a sweep",
    response_model=FineTuningSweep,
    responses=errors(400, 409, 422),
)
def create_sweep(
    resources: ResourcesDep,
    principal: PrincipalDep,
    sweeper: SweeperDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateFineTuningSweepRequest, Body(examples=[EXAMPLE])],
) -> Response:
    """Search the best hyperparameters of a job; each trial is a job like any other."""
    catalogue = resources.described_catalogue
    request = body.to_domain()

    def create(connection: Connection) -> FineTuningSweep:
        return _shown(connection, sweeps.create(connection, catalogue, principal, request))

    response = idempotent.once(create)
    sweeper.poke()
    return response


@router.get(
    "",
    operation_id="listFineTuningSweeps",
    summary="List sweeps",
    responses=errors(400),
)
def list_sweeps(
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> FineTuningSweepList:
    """List the project's sweeps, newest first."""
    with resources.database.read() as connection:
        page = rows.list_page(connection, principal.project_id, after=after, limit=limit)
        standings = rows.standings(connection, page.items)
    return FineTuningSweepList(
        data=[FineTuningSweep.of(sweep, standings[sweep.id]) for sweep in page.items],
        has_more=page.has_more,
    )


@router.get(
    "/{sweep_id}",
    operation_id="retrieveFineTuningSweep",
    summary="Retrieve a sweep",
    responses=errors(404),
)
def retrieve_sweep(
    resources: ResourcesDep, principal: PrincipalDep, sweep_id: str
) -> FineTuningSweep:
    with resources.database.read() as connection:
        return _shown(connection, rows.get(connection, principal.project_id, sweep_id))


@router.post(
    "/{sweep_id}/cancel",
    operation_id="cancelFineTuningSweep",
    summary="Cancel a sweep",
    response_model=FineTuningSweep,
    responses=errors(400, 404, 409, 422),
)
def cancel_sweep(principal: PrincipalDep, idempotent: IdempotentDep, sweep_id: str) -> Response:
    """Cancel a sweep with its jobs; models of trials that have ended stay."""

    def cancel(connection: Connection) -> FineTuningSweep:
        return _shown(connection, sweeps.cancel(connection, principal.project_id, sweep_id))

    return idempotent.once(cancel)


@router.get(
    "/{sweep_id}/trials",
    operation_id="listFineTuningSweepTrials",
    summary="List a sweep's trials",
    responses=errors(400, 404),
)
def list_trials(
    resources: ResourcesDep,
    principal: PrincipalDep,
    sweep_id: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 20,
) -> FineTuningSweepTrialList:
    """List a sweep's trials, newest first."""
    with resources.database.read() as connection:
        rows.get(connection, principal.project_id, sweep_id)
        page = sweep_trials.list_page(connection, sweep_id, after=after, limit=limit)
    return FineTuningSweepTrialList(
        data=[FineTuningSweepTrial.of(trial) for trial in page.items],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )


def _shown(connection: Connection, sweep: Sweep) -> FineTuningSweep:
    return FineTuningSweep.of(sweep, rows.standings(connection, [sweep])[sweep.id])
