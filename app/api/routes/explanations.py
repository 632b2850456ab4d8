"""The route that explains predictions."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from app.api.answering import answer
from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.schemas.common import errors
from app.api.schemas.explanations import (
    EXAMPLE_EXPLANATION,
    CreateExplanationRequest,
    Explanation,
)
from app.domain.task_routes import EXPLANATIONS

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
        lambda: answer(request, resources, principal, EXPLANATIONS, body)
    )
