"""Routes of graders: checking one, and trying it on a sample before a job is paid for."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from app.api.answering import CLIENT_CLOSED_REQUEST
from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.schemas.common import errors
from app.api.schemas.graders import (
    EXAMPLE_RUN,
    EXAMPLE_VALIDATE,
    RunGraderRequest,
    RunGraderResponse,
    ValidateGraderRequest,
    ValidateGraderResponse,
    run_grader_response,
)
from app.disconnect import unless_disconnected
from app.domain.graders import Grader, NamedGrader
from app.resources import Resources
from app.services import graders

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["Graders"])


@router.post(
    "/validate",
    operation_id="validateGrader",
    summary="Check a grader",
    response_model=ValidateGraderResponse,
    responses=errors(400, 409, 422, 503),
)
async def validate_grader(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[ValidateGraderRequest, Body(examples=[EXAMPLE_VALIDATE])],
) -> Response:
    """Check a grader: its fields, its templates and formula, and that its models exist.

    Graders of type `python` are refused: this version has no sandbox to run them in.
    """

    async def validate() -> Response:
        await run_in_threadpool(_prepare, resources, principal.project_id, body.grader)
        answer = ValidateGraderResponse(grader=body.grader)
        # As it was sent: what is absent from a grader stays so.
        return JSONResponse(answer.model_dump(mode="json", exclude_unset=True))

    return await idempotent.generated_once(validate)


@router.post(
    "/run",
    operation_id="runGrader",
    summary="Grade a sample",
    response_model=RunGraderResponse,
    responses=errors(400, 404, 409, 422, 429, 503),
)
async def run_grader(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[RunGraderRequest, Body(examples=[EXAMPLE_RUN])],
) -> Response:
    """Grade one sample, as reinforcement fine-tuning would.

    What goes wrong while grading is in the answer's `metadata.errors`, and the reward is 0.
    """

    async def run() -> Response:
        project_id = principal.project_id
        grader = await run_in_threadpool(_prepare, resources, project_id, body.grader)
        running = graders.run(resources, project_id, grader, body.model_sample, body.item)
        try:
            graded = await unless_disconnected(request, running)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(run_grader_response(graded).model_dump(mode="json"))

    return await idempotent.generated_once(run)


def _prepare(resources: Resources, project_id: str, wire: NamedGrader) -> Grader:
    catalogue = resources.catalogue
    with resources.database.read() as connection:
        return graders.prepare(connection, catalogue, project_id, wire)
