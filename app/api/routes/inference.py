"""Routes that answer: chat completions and completions, by base models and fine-tuned ones."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

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
from app.api.streaming import EventStreamResponse
from app.disconnect import unless_disconnected
from app.domain.errors import InvalidInput
from app.inference.port import Route
from app.resources import Resources
from app.services import models

router = APIRouter(prefix="/v1", tags=["Inference"])

# The status that a log shows for a request whose client went away; nobody receives it.
CLIENT_CLOSED_REQUEST = 499


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
        lambda: _answer(request, resources, principal.project_id, "/v1/chat/completions", body)
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
        lambda: _answer(request, resources, principal.project_id, "/v1/completions", body)
    )


async def _answer(
    request: Request,
    resources: Resources,
    project_id: str,
    route: Route,
    body: CreateChatCompletionRequest | CreateCompletionRequest,
) -> Response:
    adapter = await run_in_threadpool(models.locate, resources, project_id, body.model, route)
    try:
        wire = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    except UnicodeEncodeError:
        raise
    except (ValueError, RecursionError):
        raise InvalidInput("The tools are nested too deep.", param="tools") from None
    engine = resources.engine
    if body.stream:
        return EventStreamResponse(await engine.stream(route, wire, adapter))
    try:
        return JSONResponse(
            await unless_disconnected(request, engine.complete(route, wire, adapter))
        )
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
