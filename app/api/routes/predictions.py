"""Routes of models beside text generation: predictions of every task, and embeddings."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.routes.inference import CLIENT_CLOSED_REQUEST
from app.api.schemas.common import errors
from app.api.schemas.predictions import (
    EXAMPLE_EMBEDDING,
    EXAMPLE_PREDICTION,
    CreateEmbeddingRequest,
    CreatePredictionRequest,
    EmbeddingList,
    Prediction,
)
from app.disconnect import unless_disconnected
from app.domain.errors import InvalidInput
from app.domain.task_routes import PREDICTIONS
from app.inference.port import Route
from app.resources import Resources
from app.services import ensembles, models

router = APIRouter(prefix="/v1", tags=["Inference"])


@router.post(
    "/predictions",
    operation_id="createPrediction",
    summary="Predict with a model of any task",
    response_model=Prediction,
    responses=errors(400, 404, 409, 413, 422, 429, 503),
)
async def create_prediction(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreatePredictionRequest, Body(examples=[EXAMPLE_PREDICTION])],
) -> Response:
    """Predict with a fine-tuned model of another task than text generation, or an ensemble.

    Inputs and predictions have the shapes of Hugging Face's pipelines.
    """
    return await idempotent.generated_once(
        lambda: _answer(request, resources, principal.project_id, "/v1/predictions", body)
    )


@router.post(
    "/embeddings",
    operation_id="createEmbedding",
    summary="Embed texts",
    response_model=EmbeddingList,
    responses=errors(400, 404, 409, 422, 429, 503),
)
async def create_embedding(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateEmbeddingRequest, Body(examples=[EXAMPLE_EMBEDDING])],
) -> Response:
    """Embed texts with a base model that is an encoder, or one fine-tuned for feature extraction.

    Vectors are of length 1. Texts have to be given as such, not as token ids.
    """
    return await idempotent.generated_once(
        lambda: _answer(request, resources, principal.project_id, "/v1/embeddings", body)
    )


async def _answer(
    request: Request,
    resources: Resources,
    project_id: str,
    route: Route,
    body: CreatePredictionRequest | CreateEmbeddingRequest,
) -> Response:
    ensemble = adapter = None
    if route == PREDICTIONS:
        ensemble = await run_in_threadpool(ensembles.locate, resources, project_id, body.model)
    if ensemble is None:
        adapter = await run_in_threadpool(models.locate, resources, project_id, body.model, route)
    try:
        wire = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    except UnicodeEncodeError:
        raise
    except (ValueError, RecursionError):
        raise InvalidInput("The inputs are nested too deep.", param="inputs") from None
    engine = resources.engine
    if ensemble is not None:
        answer = ensembles.predict(engine, ensemble, wire)
    else:
        answer = engine.complete(route, wire, adapter)
    try:
        return JSONResponse(await unless_disconnected(request, answer))
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
