"""What is asked of the generation of one sequence, and what comes out of it."""

from dataclasses import dataclass, field
from typing import Literal

from app.domain.errors import DomainError
from worker.generation.sampling import SampledToken, SamplingParameters

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate.

    Attributes:
        prompt_ids: token ids, one at least.
        adapter: name of an adapter on the trunk; None is the base model.
        max_tokens: tokens to generate at most; 0 only scores the prompt.
        stop: strings that end the text and are not part of it.
        has_prompt_logprobs: the first piece then carries the prompt's tokens with their
            log-probabilities, and `sampling.top_logprobs` alternatives each.
        shown_special_ids: special tokens that are part of the text, which others are not.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    adapter: str | None = None
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stop: tuple[str, ...] = ()
    has_prompt_logprobs: bool = False
    shown_special_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one sequence's answer.

    Attributes:
        index: which of the submitted requests this belongs to.
        text: follows the text of the pieces before; whole characters.
        tokens: the tokens that begin in this text.
        completion_tokens: tokens generated up to here, those without text included.
        finish_reason: set on the last piece of a sequence alone.
        prompt_tokens: the scored prompt, if it was asked for, on the first piece.
        cached_tokens: how many of the prompt's tokens did not have to be computed. Of several
            choices of one prompt only the first tells.
    """

    index: int
    text: str
    tokens: tuple[SampledToken, ...]
    completion_tokens: int
    finish_reason: FinishReason | None = None
    prompt_tokens: tuple[SampledToken, ...] = ()
    cached_tokens: int = 0


class GenerationFailed(DomainError):
    """The engine could not complete this answer."""

    code = "generation_failed"
