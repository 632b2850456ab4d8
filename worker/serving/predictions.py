"""From a request's body to predictions or embeddings, by models of tasks beside text generation."""

import asyncio
import base64
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.ids import new_id
from app.domain.task_routes import EMBEDDINGS, PREDICTIONS
from app.inference import Caller
from worker.serving.body import parse
from worker.serving.engine import Engine
from worker.serving.prediction_request import Asked, Predicted
from worker.serving.prediction_wire import EmbeddingRequest, PredictionRequest
from worker.serving.task_models import ServedTaskModel
from worker.tasks import Example


async def predict(engine: Engine, body: bytes, caller: Caller) -> dict[str, Any]:
    """Answer a body of `POST /v1/predictions`; cancelling the call drops what still waits.

    Raises:
        InvalidInput: naming the field at fault.
        NotFound: there is no such model.
        TooManyRequests: too many inputs are waiting.
        EngineUnavailable: the loop has ended.
        DomainError: the model failed (`prediction_failed`).
    """
    # Off the event loop, since it can hold megabytes of media.
    asked = await asyncio.to_thread(parse, PredictionRequest, body)
    served = await engine.resolve_task(asked.model, PREDICTIONS)
    task = served.model.task

    def answer(example: Example, prediction: Any) -> Any:
        return task.answer(example, prediction, asked.parameters)

    made = await predicted(engine, served, caller, asked.all_inputs, answer, asked.name_of)
    return {
        "id": new_id("pred-"),
        "object": "prediction",
        "created": int(time.time()),
        "model": served.name,
        "task": served.task,
        "predictions": made.answers,
        "truncated_inputs": made.truncated,
        "usage": {"inputs": len(made.answers), "input_tokens": made.tokens},
    }


async def embed(engine: Engine, body: bytes, caller: Caller) -> dict[str, Any]:
    """Answer a body of `POST /v1/embeddings`. Raises: as `predict`."""
    asked = await asyncio.to_thread(parse, EmbeddingRequest, body)
    served = await engine.resolve_task(asked.model, EMBEDDINGS)

    def answer(example: Example, vector: list[float]) -> list[float]:
        refuse_truncated(example)
        if asked.dimensions not in (None, len(vector)):
            raise InvalidInput(
                f"'dimensions' must be {len(vector)}: this model has no other",
                param="dimensions",
                code="unsupported_parameter",
            )
        return vector

    made = await predicted(engine, served, caller, list(asked.texts), answer, asked.name_of)
    vectors = made.answers
    if asked.encoding_format == "base64":
        vectors = await asyncio.to_thread(lambda: [_as_base64(one) for one in made.answers])
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": vector}
            for number, vector in enumerate(vectors)
        ],
        "model": served.name,
        "usage": {"prompt_tokens": made.tokens, "total_tokens": made.tokens},
    }


def refuse_truncated(example: Example) -> None:
    """Refuse an input that is longer than the model takes. Raises: InvalidInput."""
    if example.is_truncated:
        raise InvalidInput(
            f"the text is longer than the {example.cost} tokens that this model takes",
            code="context_length_exceeded",
        )


async def predicted(
    engine: Engine,
    served: ServedTaskModel,
    caller: Caller,
    inputs: list[Any],
    answer: Callable[[Example, Any], Any],
    name_of: Callable[[int], str],
) -> Predicted:
    """Wait for a model's predictions. Raises: as `predict`.

    Args:
        answer: of an input and its prediction; may refuse the input.
        name_of: what an input is called in the request, by its number.
    """
    asked = Asked(served.model, inputs, answer, name_of, caller=caller)
    return await asyncio.wrap_future(engine.tasks.loop.submit(asked))


def _as_base64(vector: list[float]) -> str:
    """Return the numbers as little-endian float32, as OpenAI's client reads them."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
