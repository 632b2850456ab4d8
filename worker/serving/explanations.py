"""From a request's body to explanations: what each token adds to a score that a model gives."""

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from app.domain.errors import InvalidInput
from app.domain.ids import new_id
from app.domain.registry import resolve
from app.domain.task_routes import EXPLANATIONS
from app.inference import Caller
from worker.serving.body import Wire, parse
from worker.serving.engine import Engine
from worker.serving.prediction_request import Asked
from worker.tasks import Example

# Bounds of the work: an input is computed once for each step, forwards and backwards.
MAX_INPUTS = 16
MIN_STEPS, MAX_STEPS = 20, 200

# By its path, and when it is first asked for: the import takes a second.
_ATTRIBUTE = "worker.serving.attributions:attribute"


class ExplanationParameters(Wire):
    target: str | None = None
    steps: Annotated[int, Field(ge=MIN_STEPS, le=MAX_STEPS)] = 50
    internal_batch_size: Annotated[int, Field(ge=1, le=MAX_STEPS)] = MAX_STEPS


class ExplanationRequest(Wire):
    """The body of `POST /v1/explanations`."""

    model: Annotated[str, Field(min_length=1)]
    inputs: Any
    parameters: ExplanationParameters = ExplanationParameters()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.inputs, list) and not 0 < len(self.inputs) <= MAX_INPUTS:
            raise InvalidInput(
                f"'inputs' must be one input, or a list of 1 to {MAX_INPUTS}", param="inputs"
            )
        return self

    @property
    def all_inputs(self) -> list[Any]:
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    def name_of(self, number: int) -> str:
        return f"inputs[{number}]" if isinstance(self.inputs, list) else "inputs"


async def explain(engine: Engine, body: bytes, caller: Caller) -> dict[str, Any]:
    """Answer a body of `POST /v1/explanations`; cancelling the call drops what still waits.

    Inputs are explained on the thread of predictions, which take turns with them.

    Raises:
        InvalidInput: naming the field at fault.
        NotFound: there is no such model.
        TooManyRequests: too many inputs are waiting.
        EngineUnavailable: the loop has ended.
    """
    asked = parse(ExplanationRequest, body)
    served = await engine.resolve_task(asked.model, EXPLANATIONS)
    attribute = await asyncio.to_thread(resolve, _ATTRIBUTE)
    parameters, loop = asked.parameters, engine.tasks.loop

    def explained(value: Any, example: Example) -> Mapping[str, Any]:
        # As large as a pass of predictions at most.
        together = max(1, min(parameters.internal_batch_size, loop.budget // example.cost))
        found: Mapping[str, Any] = attribute(
            served.model,
            value,
            example,
            parameters.target,
            num_steps=parameters.steps,
            steps_per_pass=together,
        )
        return found

    found = await asyncio.wrap_future(
        loop.submit(
            Asked(
                served.model,
                asked.all_inputs,
                lambda _, one: one,
                asked.name_of,
                explained,
                caller,
            )
        )
    )
    return {
        "id": new_id("expl-"),
        "object": "explanation",
        "created": int(time.time()),
        "model": served.name,
        "task": served.task,
        "explanations": found.answers,
        "truncated_inputs": found.truncated,
        "usage": {"inputs": len(found.answers), "input_tokens": found.tokens},
    }
