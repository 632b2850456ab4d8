"""Checking graders, and running one on a sample with the engine as the grading model."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.repositories import aliases
from app.domain.errors import EngineUnavailable, InvalidInput, NotFound
from app.domain.graders import (
    Completion,
    Grader,
    GradeResult,
    ModelPrompt,
    NamedGrader,
    grading,
    prepare_grader,
)
from app.domain.task_routes import CHAT
from app.inference import Caller
from app.resources import Resources
from app.services import inference, models


@dataclass(frozen=True, slots=True)
class GradedSample:
    """What a grader made of a sample, and how long it took, its models included."""

    grader: Grader
    result: GradeResult
    execution_seconds: float


def prepare(
    connection: Connection,
    catalogue: Catalogue,
    project_id: str,
    wire: NamedGrader,
    where: str = "grader",
) -> Grader:
    """Check a grader and the names of its models, and return it ready to run.

    Args:
        where: the path of the grader in the request, for messages.

    Raises:
        InvalidInput: naming the field.
    """
    grader = prepare_grader(wire, where)
    for path, name in grader.models.items():
        if aliases.find(connection, project_id, name) is not None:
            continue
        try:
            models.find(connection, catalogue, project_id, name)
        except NotFound as error:
            raise InvalidInput(error.message, param=path, code="model_not_found") from None
    return grader


async def run(
    resources: Resources,
    project_id: str,
    grader: Grader,
    model_sample: str,
    item: Mapping[str, Any],
) -> GradedSample:
    """Grade one sample; cancelling the call stops what the engine generates for it.

    Raises:
        EngineUnavailable: the engine cannot be reached, or failed.
        TooManyRequests: its queue is full.
        ModelDamaged: the weights of a grading model are damaged.
        NotFound: a grading model was deleted a moment ago.
    """
    started = time.monotonic()
    steps = grading(grader, model_sample, item)

    def advance(answer: Completion | InvalidInput | None) -> ModelPrompt | GradeResult:
        try:
            if isinstance(answer, InvalidInput):
                return steps.throw(answer)
            return next(steps) if answer is None else steps.send(answer)
        except StopIteration as end:
            result: GradeResult = end.value
            return result

    # In a thread: a metric may take a second to import, and long texts to compare.
    step = await asyncio.to_thread(advance, None)
    while isinstance(step, ModelPrompt):
        step = await asyncio.to_thread(advance, await _ask(resources, project_id, step))
    return GradedSample(grader, step, time.monotonic() - started)


async def _ask(
    resources: Resources, project_id: str, prompt: ModelPrompt
) -> Completion | InvalidInput:
    """Return the engine's answer, or why it does not take the prompt."""
    sampling = {name: value for name, value in asdict(prompt.sampling).items() if value is not None}
    body = {"model": prompt.model, "messages": list(prompt.messages), **sampling}
    try:
        answer = await inference.complete(resources, Caller(project_id), CHAT, body)
    except InvalidInput as error:
        return error
    return _completion(answer)


def _completion(answer: Mapping[str, Any]) -> Completion:
    try:
        message = answer["choices"][0]["message"]
        usage = answer.get("usage") or {}
        return Completion(
            text=message.get("content") or "",
            refusal=message.get("refusal"),
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise EngineUnavailable("The inference engine's answer has an unknown shape.") from None
