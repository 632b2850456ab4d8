"""The words of grading: what a grader is given, what it asks of a model, what comes out.

A grader does no I/O. What scores by a model is a generator that yields prompts and is sent
completions, so that the API can await its engine and a trainer can run a whole group in one batch.
"""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from app.domain.graders.wire import NamedGrader

# OpenAI's names of what can go wrong, as far as graders here can.
ErrorKind = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "invalid_variable_error",
    "other_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]


@dataclass(frozen=True)
class Sample:
    """A model's answer, and the dataset item that it answers."""

    output_text: str
    item: Mapping[str, Any]

    @cached_property
    def output_json(self) -> Any:
        """The answer as JSON. Raises: GradingFailed, where it is none."""
        try:
            return json.loads(self.output_text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise GradingFailed("sample_parse_error", "the sample is not valid JSON") from None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a grading model samples; None is the engine's own choice."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelPrompt:
    """What a grader asks a model; messages are chat messages with `role` and `content`."""

    model: str
    messages: tuple[dict[str, str], ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered; `refusal` is its own word for not answering."""

    text: str
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Complete(Protocol):
    """The port through which a grader reaches a model."""

    def __call__(self, prompt: ModelPrompt) -> Completion:
        """Answer one prompt.

        Raises:
            InvalidInput: the model cannot take this prompt, which becomes a grader error.
        """


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that one grading model read and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, completion: Completion) -> "TokenUsage":
        return TokenUsage(
            self.prompt_tokens + completion.prompt_tokens,
            self.completion_tokens + completion.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class GraderError:
    """What went wrong in one grader: its name, OpenAI's kind of error, and a sentence."""

    grader: str
    kind: ErrorKind
    message: str


class GradingFailed(Exception):
    """This grader cannot score this sample; never leaves the package."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a grader made of a sample.

    Attributes:
        reward: None where it failed.
        sub_rewards: of each grader in a `multi`, None where that one failed.
    """

    reward: float | None
    sub_rewards: Mapping[str, float | None] = field(default_factory=dict)
    errors: tuple[GraderError, ...] = ()


@dataclass(frozen=True, slots=True)
class GradeResult:
    """One graded sample.

    Attributes:
        reward: 0 where any grader failed, or `1 - a` would reward the failure of `a`.
        token_usage: by the name of the grading model.
    """

    reward: float
    sub_rewards: Mapping[str, float | None]
    errors: tuple[GraderError, ...]
    token_usage: Mapping[str, TokenUsage]


Scoring = Generator[ModelPrompt, Completion, Scores]
Scorer = Callable[[Sample], Scoring]


@dataclass(frozen=True, slots=True)
class Grader:
    """A grader that was checked and is ready to run, any number of times.

    Attributes:
        models: the models that it asks, by the path of the field that names each.
    """

    wire: NamedGrader
    score: Scorer
    models: Mapping[str, str] = field(default_factory=dict)


def without_model(score: Callable[[Sample], float]) -> Scorer:
    """Make a scorer of a function that asks no model. `score` may raise GradingFailed."""

    def scoring(sample: Sample) -> Scoring:
        # Never yields, but is a generator like those that do.
        yield from ()
        return Scores(score(sample))

    return scoring


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
