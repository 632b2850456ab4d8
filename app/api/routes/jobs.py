"""Routes of fine-tuning jobs, their events and their checkpoints."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep, SweeperDep
from app.api.idempotency import Idempotent, IdempotentDep
from app.api.schemas.common import errors
from app.api.schemas.job_requests import EXAMPLE, CreateFineTuningJobRequest
from app.api.schemas.jobs import (
    FineTuningJob,
    FineTuningJobCheckpoint,
    FineTuningJobCheckpointList,
    FineTuningJobEvent,
    FineTuningJobEventList,
    FineTuningJobList,
)
from app.db.repositories import adapters, events, idempotency
from app.db.repositories import jobs as rows
from app.db.repositories.jobs import Job
from app.db.repositories.keys import Principal
from app.domain.errors import InvalidInput
from app.services import jobs

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

_MOVES = ("cancel", "pause", "resume")


@router.post(
    "",
    operation_id="createFineTuningJob",
    summary="Create a fine-tuning job",
    response_model=FineTuningJob,
    responses=errors(400, 409, 422),
)
def create_job(
    resources: ResourcesDep,
    principal: PrincipalDep,
    sweeper: SweeperDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateFineTuningJobRequest, Body(examples=[EXAMPLE])],
) -> Response:
    """Accept a job. Once this answers, the job ends in a terminal state whatever crashes."""
    catalogue = resources.described_catalogue

    def create(connection: Connection) -> FineTuningJob:
        job = jobs.create(connection, catalogue, principal, body.to_domain())
        return FineTuningJob.of(job, principal.organization_id)

    response = idempotent.once(create)
    sweeper.poke()
    return response


@router.get(
    "",
    operation_id="listPaginatedFineTuningJobs",
    summary="List fine-tuning jobs",
    responses=errors(400),
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "required": False,
                "style": "deepObject",
                "explode": True,
                "description": "`metadata[key]=value` lists the jobs that carry the pair; "
                "`metadata=null` those that carry none.",
                "schema": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                },
            }
        ]
    },
)
def list_jobs(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> FineTuningJobList:
    """List the project's jobs, newest first."""
    query = request.query_params
    if query.get("metadata", "null") != "null":
        raise InvalidInput(
            "Invalid 'metadata': expected metadata[<key>]=<value>, or metadata=null for jobs "
            "without any",
            param="metadata",
        )
    pairs = {
        key.removeprefix("metadata[").removesuffix("]"): value
        for key, value in query.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    with resources.database.read() as connection:
        page = rows.list_page(
            connection,
            principal.project_id,
            metadata=pairs,
            without_metadata=query.get("metadata") == "null",
            after=after,
            limit=limit,
        )
    return FineTuningJobList(
        data=[FineTuningJob.of(job, principal.organization_id) for job in page.items],
        has_more=page.has_more,
    )


@router.get(
    "/{fine_tuning_job_id}",
    operation_id="retrieveFineTuningJob",
    summary="Retrieve a fine-tuning job",
    responses=errors(404),
)
def retrieve_job(
    resources: ResourcesDep, principal: PrincipalDep, fine_tuning_job_id: str
) -> FineTuningJob:
    with resources.database.read() as connection:
        job = rows.get(connection, principal.project_id, fine_tuning_job_id)
    return FineTuningJob.of(job, principal.organization_id)


@router.post(
    "/{fine_tuning_job_id}/cancel",
    operation_id="cancelFineTuningJob",
    summary="Cancel a fine-tuning job",
    response_model=FineTuningJob,
    responses=errors(400, 404, 409, 422),
)
def cancel_job(
    principal: PrincipalDep, idempotent: IdempotentDep, fine_tuning_job_id: str
) -> Response:
    """Cancel a job that has not ended; a running one stops at its next step."""
    return _move(jobs.cancel, idempotent, principal, fine_tuning_job_id)


@router.post(
    "/{fine_tuning_job_id}/pause",
    operation_id="pauseFineTuningJob",
    summary="Pause a fine-tuning job",
    response_model=FineTuningJob,
    responses=errors(400, 404, 409, 422),
)
def pause_job(
    principal: PrincipalDep, idempotent: IdempotentDep, fine_tuning_job_id: str
) -> Response:
    """Pause a job. One that is running pauses at the end of its step, with a checkpoint."""
    return _move(jobs.pause, idempotent, principal, fine_tuning_job_id)


@router.post(
    "/{fine_tuning_job_id}/resume",
    operation_id="resumeFineTuningJob",
    summary="Resume a fine-tuning job",
    response_model=FineTuningJob,
    responses=errors(400, 404, 409, 422),
)
def resume_job(
    principal: PrincipalDep,
    sweeper: SweeperDep,
    idempotent: IdempotentDep,
    fine_tuning_job_id: str,
) -> Response:
    """Let a paused job go on from its last checkpoint, or take back a pause that is still due."""
    response = _move(jobs.resume, idempotent, principal, fine_tuning_job_id)
    sweeper.poke()
    return response


@router.get(
    "/{fine_tuning_job_id}/events",
    operation_id="listFineTuningEvents",
    summary="List a job's events",
    responses=errors(400, 404),
)
def list_events(
    resources: ResourcesDep,
    principal: PrincipalDep,
    fine_tuning_job_id: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> FineTuningJobEventList:
    """List a job's events, newest first."""
    with resources.database.read() as connection:
        rows.get(connection, principal.project_id, fine_tuning_job_id)
        page = events.list_page(connection, fine_tuning_job_id, after=after, limit=limit)
    return FineTuningJobEventList(
        data=[FineTuningJobEvent.of(event) for event in page.items],
        has_more=page.has_more,
    )


@router.get(
    "/{fine_tuning_job_id}/checkpoints",
    operation_id="listFineTuningJobCheckpoints",
    summary="List a job's checkpoints",
    responses=errors(400, 404),
)
def list_checkpoints(
    resources: ResourcesDep,
    principal: PrincipalDep,
    fine_tuning_job_id: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> FineTuningJobCheckpointList:
    """List a job's checkpoints, newest first."""
    with resources.database.read() as connection:
        rows.get(connection, principal.project_id, fine_tuning_job_id)
        page = adapters.list_checkpoints(connection, fine_tuning_job_id, after=after, limit=limit)
    return FineTuningJobCheckpointList(
        data=[FineTuningJobCheckpoint.of(checkpoint) for checkpoint in page.items],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )


def _move(
    move: Callable[[Connection, str, str], Job],
    idempotent: Idempotent,
    principal: Principal,
    job_id: str,
) -> Response:
    def effect(connection: Connection) -> FineTuningJob:
        job = move(connection, principal.project_id, job_id)
        # Who was told that the job is paused, and repeats that after a resume, means it anew.
        paths = [f"{router.prefix}/{job_id}/{one}" for one in _MOVES]
        idempotency.outdate(connection, principal.project_id, paths)
        return FineTuningJob.of(job, principal.organization_id)

    return idempotent.once(effect)
