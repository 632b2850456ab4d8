"""From a request's body to scores of pairs of texts, in vLLM's form.

A model that was fine-tuned to classify pairs reads both texts of a pair at once, as a
cross-encoder; one that embeds reads each by itself, and the score is the cosine between the two.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from app.domain.errors import InvalidInput
from app.domain.ids import new_id
from app.domain.task_routes import FEATURE_EXTRACTION, SCORES
from app.inference import Caller
from worker.serving.body import Wire, parse
from worker.serving.engine import Engine
from worker.serving.prediction_request import Predicted
from worker.serving.predictions import predicted, refuse_truncated
from worker.serving.task_models import ServedTaskModel
from worker.tasks import Example

MAX_PAIRS = 2048

_Text = Annotated[str, Field(min_length=1)]
_Texts = _Text | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PAIRS)]
_TOLD = f"a text, or a list of up to {MAX_PAIRS} texts, none empty"


class ScoreOptions(Wire):
    label: str | None = None


class ScoreRequest(Wire):
    """The body of `POST /v1/score`.

    Attributes:
        tunesmith: ours; says whose probability is the score, where a model has several labels.
    """

    model: _Text
    text_1: _Texts = Field(description=_TOLD)
    text_2: _Texts = Field(description=_TOLD)
    user: str | None = None  # Accepted and left unread.
    tunesmith: ScoreOptions = ScoreOptions()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.firsts) not in (1, len(self.seconds)):
            raise InvalidInput(
                f"'text_2' must have as many texts as 'text_1', which has {len(self.firsts)}; it "
                f"has {len(self.seconds)}. One text in 'text_1' is compared with all others",
                param="text_2",
            )
        return self

    @property
    def firsts(self) -> list[str]:
        """One text for each of `seconds`, or one for all of them."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    def name_of_second(self, number: int) -> str:
        return "text_2" if isinstance(self.text_2, str) else f"text_2[{number}]"


async def score(engine: Engine, body: bytes, caller: Caller) -> dict[str, Any]:
    """Answer a body of `POST /v1/score`. Raises: as `predictions.predict`."""
    asked = await asyncio.to_thread(parse, ScoreRequest, body)
    served = await engine.resolve_task(asked.model, SCORES)
    if served.task == FEATURE_EXTRACTION:
        made, scores = await _cosines(engine, served, caller, asked)
    else:
        made, scores = await _probabilities(engine, served, caller, asked)
    return {
        "id": new_id("score-"),
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "data": [
            {"index": index, "object": "score", "score": one} for index, one in enumerate(scores)
        ],
        "usage": {
            "prompt_tokens": made.tokens,
            "total_tokens": made.tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


async def _probabilities(
    engine: Engine, served: ServedTaskModel, caller: Caller, asked: ScoreRequest
) -> tuple[Predicted, list[float]]:
    task: Any = served.model.task
    place = _place(task.labels, asked.tunesmith.label)

    def answer(example: Example, prediction: Any) -> float:
        refuse_truncated(example)
        chosen: float = prediction if place is None else prediction[place]
        return chosen

    firsts = asked.firsts * (len(asked.seconds) // len(asked.firsts))
    pairs = [
        {"text": first, "text_pair": second}
        for first, second in zip(firsts, asked.seconds, strict=True)
    ]
    made = await predicted(engine, served, caller, pairs, answer, asked.name_of_second)
    return made, list(made.answers)


async def _cosines(
    engine: Engine, served: ServedTaskModel, caller: Caller, asked: ScoreRequest
) -> tuple[Predicted, list[float]]:
    if asked.tunesmith.label is not None:
        raise InvalidInput(
            "'tunesmith.label': this model embeds texts and has no labels", param="tunesmith.label"
        )
    # A text that is compared with all others is embedded once.
    firsts, texts = asked.firsts, [*asked.firsts, *asked.seconds]

    def name_of(number: int) -> str:
        if number >= len(firsts):
            return asked.name_of_second(number - len(firsts))
        return "text_1" if isinstance(asked.text_1, str) else f"text_1[{number}]"

    def answer(example: Example, vector: list[float]) -> list[float]:
        refuse_truncated(example)
        return vector

    made = await predicted(engine, served, caller, texts, answer, name_of)
    vectors = list(made.answers)
    left = vectors[: len(firsts)] * (len(asked.seconds) // len(firsts))
    return made, await asyncio.to_thread(_cosines_of, left, vectors[len(firsts) :])


def _place(labels: Sequence[str], asked: str | None) -> int | None:
    """Return which probability is the score; None if the model gives one number.

    Raises:
        InvalidInput: there is no such label, or one has to be named.
    """
    param = "tunesmith.label"
    if asked is not None:
        if asked not in labels:
            known = ", ".join(map(repr, labels[:20])) or "none: it gives a number"
            raise InvalidInput(
                f"'{param}' must be a label of this model; it has {known}", param=param
            )
        return list(labels).index(asked)
    if not labels:
        return None
    if len(labels) > 2:
        known = ", ".join(map(repr, labels[:20]))
        raise InvalidInput(
            f"'{param}' must say whose probability is the score: {known}", param=param
        )
    # As is the custom, the second of two classes is the one that is looked for.
    return len(labels) - 1


def _cosines_of(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> list[float]:
    return [_cosine(one, other) for one, other in zip(left, right, strict=True)]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) * sum(b * b for b in other)
    return dot / lengths**0.5 if lengths else 0.0
