"""What the HTTP side and the generation loop say to each other.

The narrow interface that later work extends: requests go in with `GenerationLoop.submit`, which
returns one `Generation`; that is iterated for pieces of text and can be cancelled. How the loop
batches, caches or orders its work shows on neither side.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from app.domain.errors import DomainError
from app.inference import Caller
from worker.generation.request import Piece


class Generation:
    """The answers to one request, while the loop makes them.

    Iterate it once, on the event loop that the loop was made with. Pieces are kept until they are
    read, so a slow reader holds up no one; `max_tokens` bounds how many there can be.

    Attributes:
        caller: for whom they are.
        has_begun: whether any of them has had a place in the loop, which sets this.
    """

    def __init__(self, count: int, caller: Caller) -> None:
        self.caller = caller
        self.has_begun = False
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
