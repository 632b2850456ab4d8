"""Routes of models beside text generation: predictions of every task, embeddings, scores."""

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from app.api.answering import answer
from app.api.deps import PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentGenerationDep
from app.api.schemas.common import errors
from app.api.schemas.predictions import (
    EXAMPLE_EMBEDDING,
    EXAMPLE_PREDICTION,
    CreateEmbeddingRequest,
    CreatePredictionRequest,
    EmbeddingList,
    Prediction,
)
from app.api.schemas.scores import EXAMPLE_SCORE, CreateScoreRequest, ScoreList
from app.domain.task_routes import EMBEDDINGS, PREDICTIONS, SCORES

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
        lambda: answer(request, resources, principal, PREDICTIONS, body)
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
        lambda: answer(request, resources, principal, EMBEDDINGS, body)
    )


@router.post(
    "/score",
    operation_id="createScore",
    summary="Score pairs of texts",
    response_model=ScoreList,
    responses=errors(400, 404, 409, 422, 429, 503),
)
async def create_score(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentGenerationDep,
    body: Annotated[CreateScoreRequest, Body(examples=[EXAMPLE_SCORE])],
) -> Response:
    """Score pairs as vLLM does: by a model that classifies them, or by the cosine of embeddings.

    A model fine-tuned for text classification reads both texts at once; its score is a number that
    it was trained to give, or the probability of a label.
    """
    return await idempotent.generated_once(
        lambda: answer(request, resources, principal, SCORES, body)
    )
