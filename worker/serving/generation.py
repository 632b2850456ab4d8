"""What the HTTP side and the generation loop say to each other.

The narrow interface that later work extends: requests go in with `GenerationLoop.submit`, which
returns one `Generation`; that is iterated for pieces of text and can be cancelled. How the loop
batches, caches or orders its work shows on neither side.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Literal

from app.domain.errors import DomainError
from worker.serving.sampling import SampledToken, SamplingParameters

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate.

    Attributes:
        prompt_ids: token ids, one at least.
        adapter: slot that `GenerationLoop.attach` was given; None is the base model.
        max_tokens: tokens to generate at most; 0 only scores the prompt.
        stop: strings that end the text and are not part of it.
        has_prompt_logprobs: the first piece then carries the prompt's tokens with their
            log-probabilities, and `sampling.top_logprobs` alternatives each.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    adapter: str | None = None
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stop: tuple[str, ...] = ()
    has_prompt_logprobs: bool = False


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
    """

    index: int
    text: str
    tokens: tuple[SampledToken, ...]
    completion_tokens: int
    finish_reason: FinishReason | None = None
    prompt_tokens: tuple[SampledToken, ...] = ()


class GenerationFailed(DomainError):
    """The engine could not complete this answer."""

    code = "generation_failed"


class Generation:
    """The answers to one request, while the loop makes them.

    Iterate it once, on the event loop that the loop was made with. Pieces are kept until they are
    read, so a slow reader holds up no one; `max_tokens` bounds how many there can be.
    """

    def __init__(self, count: int) -> None:
        self._unfinished = count
        self._is_cancelled = False
        self._arrived: asyncio.Queue[Piece | DomainError] = asyncio.Queue()

    @property
    def is_cancelled(self) -> bool:
        """Whether the loop should drop these sequences at its next step."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Stop generating. May be called from any thread, at any time and more than once."""
        self._is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces as they come until every sequence has finished.

        Raises:
            GenerationFailed: a sequence failed; the others are cancelled.
            EngineUnavailable: the loop has ended.
        """
        while self._unfinished:
            arrived = await self._arrived.get()
            if isinstance(arrived, DomainError):
                self.cancel()
                raise arrived
            self._unfinished -= arrived.finish_reason is not None
            yield arrived

    def put(self, arrived: Piece | DomainError) -> None:
        """Hand over what the loop made; called on the event loop."""
        self._arrived.put_nowait(arrived)


def deliver(arrivals: Iterable[tuple[Generation, Piece | DomainError]]) -> None:
    """Hand over what one step made for all generations; called on the event loop."""
    for generation, arrived in arrivals:
        generation.put(arrived)
