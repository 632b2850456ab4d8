"""Wire types of graders; the graders themselves are made from the registry of graders."""

from typing import Annotated, Any

from pydantic import Field

from app.api.schemas.common import Request, Response
from app.api.schemas.inference import Usage
from app.domain.graders import ErrorKind, GraderError, GraderModel, TokenUsage
from app.services.graders import GradedSample


class ValidateGraderRequest(Request):
    """A grader to check."""

    grader: GraderModel


class RunGraderRequest(Request):
    """A grader, and the sample that it is to grade."""

    grader: GraderModel
    model_sample: Annotated[
        str, Field(description="What a model answered: `sample.output_text` in templates.")
    ]
    item: Annotated[
        dict[str, Any], Field(description="The dataset's record: `item` in templates.")
    ] = Field(default_factory=dict)


class ValidateGraderResponse(Response):
    """The grader, which is valid."""

    grader: GraderModel


class GraderErrors(Response):
    """What went wrong while grading."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderMetadata(Response):
    errors: GraderErrors
    execution_time: Annotated[float, Field(description="In seconds.")]
    name: str
    sampled_model_name: Annotated[
        str | None, Field(description="The grading model, where there was exactly one.")
    ]
    scores: dict[str, Any]
    token_usage: Annotated[int | None, Field(description="Tokens of all grading models.")]
    type: str


class GraderErrorDetail(Response):
    grader: str
    code: ErrorKind
    message: str


class GraderRunExtension(Response):
    """What Tunesmith adds to OpenAI's answer."""

    errors: Annotated[
        list[GraderErrorDetail], Field(description="In which grader what went wrong, in words.")
    ]


class RunGraderResponse(Response):
    """A graded sample; `reward` is 0 where any grader failed."""

    reward: float
    sub_rewards: Annotated[
        dict[str, float | None],
        Field(description="Of each grader in a `multi`; null where that one failed."),
    ]
    metadata: GraderMetadata
    model_grader_token_usage_per_model: dict[str, Usage]
    tunesmith: GraderRunExtension


def run_grader_response(graded: GradedSample) -> RunGraderResponse:
    """Return the wire type of a graded sample."""
    result, wire = graded.result, graded.grader.wire
    usage = {model: _usage(tokens) for model, tokens in result.token_usage.items()}
    return RunGraderResponse(
        reward=result.reward,
        sub_rewards=dict(result.sub_rewards),
        metadata=GraderMetadata(
            errors=_errors(result.errors),
            execution_time=graded.execution_seconds,
            name=wire.name,
            sampled_model_name=next(iter(usage)) if len(usage) == 1 else None,
            # OpenAI documents no key of it, and its examples have none.
            scores={},
            token_usage=sum(one.total_tokens for one in usage.values()) if usage else None,
            type=wire.type,
        ),
        model_grader_token_usage_per_model=usage,
        tunesmith=GraderRunExtension(
            errors=[
                GraderErrorDetail(grader=error.grader, code=error.kind, message=error.message)
                for error in result.errors
            ]
        ),
    )


def _usage(tokens: TokenUsage) -> Usage:
    return Usage(
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.total_tokens,
    )


def _errors(found: tuple[GraderError, ...]) -> GraderErrors:
    kinds = {error.kind for error in found}
    of_server = (error.message for error in found if error.kind == "model_grader_server_error")
    return GraderErrors(
        formula_parse_error="formula_parse_error" in kinds,
        sample_parse_error="sample_parse_error" in kinds,
        truncated_observation_error="truncated_observation_error" in kinds,
        # The next three come of python graders, which are refused.
        unresponsive_reward_error=False,
        python_grader_server_error=False,
        python_grader_server_error_type=None,
        python_grader_runtime_error=False,
        python_grader_runtime_error_details=None,
        invalid_variable_error="invalid_variable_error" in kinds,
        other_error="other_error" in kinds,
        model_grader_server_error="model_grader_server_error" in kinds,
        model_grader_refusal_error="model_grader_refusal_error" in kinds,
        model_grader_parse_error="model_grader_parse_error" in kinds,
        model_grader_server_error_details=next(of_server, None),
    )


_EXAMPLE_GRADER = {
    "type": "string_check",
    "name": "answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "operation": "ilike",
}
EXAMPLE_VALIDATE = {"grader": _EXAMPLE_GRADER}
EXAMPLE_RUN = EXAMPLE_VALIDATE | {
    "model_sample": "It is 42.",
    "item": {"reference_answer": "42"},
}
