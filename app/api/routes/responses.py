"""The route of responses: OpenAI's newer interface to chat models, as far as it needs no memory."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from app.api.answering import answer_by
from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.schemas.common import errors
from app.api.schemas.response_requests import EXAMPLE_RESPONSE, CreateResponseRequest
from app.api.schemas.responses import ModelResponse
from app.inference import Caller
from app.services import responses

router = APIRouter(prefix="/v1", tags=["Inference"])


@router.post(
    "/responses",
    operation_id="createResponse",
    summary="Respond to an input",
    response_model=ModelResponse,
    responses={
        **errors(400, 404, 409, 422, 429, 503),
        200: {
            "description": "The response; with `stream` its events, as server-sent events.",
            "content": {
                "text/event-stream": {
                    "schema": {
                        "type": "string",
                        "description": "`response.created`, `response.in_progress`, items as they "
                        "are made, and `response.completed`, `.incomplete` or `.failed` at the "
                        "end.",
                    }
                }
            },
        },
    },
)
async def create_response(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateResponseRequest, Body(examples=[EXAMPLE_RESPONSE])],
) -> Response:
    """Respond with a chat model. Nothing is stored: there is no response to go on from by its id.

    It is answered as a chat completion, and so by every engine.
    """
    caller = Caller(principal.project_id)
    return await idempotent.generated_once(
        lambda: answer_by(
            request,
            body,
            partial(responses.complete, resources, caller),
            partial(responses.stream, resources, caller),
        )
    )
