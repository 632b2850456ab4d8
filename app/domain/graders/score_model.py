"""The grader `score_model`: a model is asked for a number."""

import math
from typing import Annotated, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.graders.grading import Grader, GradingFailed, Sample, Sampling, Scores, Scoring
from app.domain.graders.model_input import (
    Messages,
    parse_messages,
    refuse_refusals,
    refused_prompt,
    result_of,
)
from app.domain.graders.wire import GraderWire, NamedGrader, PassThreshold, Text

Number = Annotated[float, Field(allow_inf_nan=False)]


class GraderSamplingParams(GraderWire):
    """How the grading model samples."""

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    def to_domain(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            max_completion_tokens=self.max_completions_tokens,
        )


class ScoreModelGrader(NamedGrader):
    """A model's score, cut to `range`. It is told to answer with an object `{"result": 0.5}`."""

    type: Literal["score_model"]
    model: Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]
    input: Messages
    range: Annotated[
        list[Number],
        Field(min_length=2, max_length=2, description="The lowest and the highest score."),
    ] = Field(default_factory=lambda: [0.0, 1.0])
    sampling_params: GraderSamplingParams | None = None
    pass_threshold: PassThreshold | None = None


def prepare(wire: ScoreModelGrader, where: str) -> Grader:
    """Return the grader, ready to run. Raises: InvalidInput, naming the field."""
    low, high = wire.range
    if low >= high:
        raise InvalidInput(
            f"Invalid '{where}.range': expected the lower number first, found {wire.range}.",
            param=f"{where}.range",
        )
    conversation = parse_messages(
        wire.model,
        wire.input,
        (wire.sampling_params or GraderSamplingParams()).to_domain(),
        f'Answer with a JSON object {{"result": <a number from {low:g} to {high:g}>}}.',
        f"{where}.input",
    )

    def score(sample: Sample) -> Scoring:
        try:
            completion = yield conversation.prompt(sample)
        except InvalidInput as error:
            raise refused_prompt(error) from None
        refuse_refusals(completion)
        return Scores(_number(completion.text, low, high))

    return Grader(wire, score, {f"{where}.model": wire.model})


def _number(text: str, low: float, high: float) -> float:
    result = result_of(text, ("result", "score"))
    try:
        # A number in quotes is one still; true and false are none.
        number = math.nan if isinstance(result, bool) else float(result)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise GradingFailed(
            "model_grader_parse_error",
            f"expected a number, the model answered {str(result)[:80]!r}",
        )
    # As with OpenAI: a model that overshoots has said something all the same.
    return min(max(number, low), high)
