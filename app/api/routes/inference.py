"""Routes that answer: chat completions and completions, by base models and fine-tuned ones."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from app.api.answering import answer
from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.schemas.common import errors
from app.api.schemas.inference import (
    EXAMPLE_CHAT,
    EXAMPLE_COMPLETION,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CreateChatCompletionRequest,
    CreateCompletionRequest,
)
from app.domain.task_routes import CHAT, COMPLETIONS

router = APIRouter(prefix="/v1", tags=["Inference"])


def _responses(streamed: type[Any]) -> dict[int | str, dict[str, Any]]:
    return {
        **errors(400, 404, 409, 422, 429, 503),
        200: {
            "description": "The answer; with `stream` its pieces, as server-sent events.",
            "content": {
                "text/event-stream": {
                    "schema": {
                        "type": "string",
                        "description": f"`data: <{streamed.__name__}>` lines, then `data: [DONE]`.",
                    }
                }
            },
        },
    }


@router.post(
    "/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    response_model=ChatCompletion,
    responses=_responses(ChatCompletionChunk),
)
async def create_chat_completion(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateChatCompletionRequest, Body(examples=[EXAMPLE_CHAT])],
) -> Response:
    """Answer with a base model, or with a fine-tuned one from the moment its job succeeded."""
    return await idempotent.generated_once(
        lambda: answer(request, resources, principal, CHAT, body)
    )


@router.post(
    "/completions",
    operation_id="createCompletion",
    summary="Continue a text",
    response_model=Completion,
    responses=_responses(Completion),
)
async def create_completion(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateCompletionRequest, Body(examples=[EXAMPLE_COMPLETION])],
) -> Response:
    """Continue a text, without any chat template."""
    return await idempotent.generated_once(
        lambda: answer(request, resources, principal, COMPLETIONS, body)
    )
