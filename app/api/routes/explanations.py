"""The route that explains predictions."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.routes.inference import CLIENT_CLOSED_REQUEST
from app.api.schemas.common import errors
from app.api.schemas.explanations import (
    EXAMPLE_EXPLANATION,
    CreateExplanationRequest,
    Explanation,
)
from app.disconnect import unless_disconnected
from app.domain.task_routes import EXPLANATIONS
from app.resources import Resources
from app.services import models

router = APIRouter(prefix=EXPLANATIONS, tags=["Inference"])


@router.post(
    "",
    operation_id="createExplanation",
    summary="Explain predictions",
    response_model=Explanation,
    responses=errors(400, 404, 409, 422, 429, 503),
)
async def create_explanation(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateExplanationRequest, Body(examples=[EXAMPLE_EXPLANATION])],
) -> Response:
    """Tell what each token of a text adds to the score of a label.

    Integrated gradients (https://arxiv.org/abs/1703.01365) of the score that `/v1/predictions`
    gives: a probability, or a number. The baseline is the text with padding in place of its
    tokens; the special tokens stay, and add nothing.
    """
    return await idempotent.generated_once(
        lambda: _answer(request, resources, principal.project_id, body)
    )


async def _answer(
    request: Request, resources: Resources, project_id: str, body: CreateExplanationRequest
) -> Response:
    adapter = await run_in_threadpool(
        models.locate, resources, project_id, body.model, EXPLANATIONS
    )
    wire = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    try:
        return JSONResponse(
            await unless_disconnected(
                request, resources.engine.complete(EXPLANATIONS, wire, adapter)
            )
        )
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
