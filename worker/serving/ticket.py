"""One sequence on its way through the loop: for whom, since when, and what memory it holds."""

from functools import cached_property

from worker.generation.request import GenerationRequest
from worker.generation.sequence import SequenceState
from worker.generation.vocabulary import Vocabulary
from worker.serving.generation import Generation
from worker.serving.prefix_store import PrefixKey, TokenIds, as_token_ids

# Tokens of an answer for which there is room from the start, and by which room grows at least.
AHEAD_TOKENS = 64


class Ticket:
    """A sequence, and its place in the loop.

    Attributes:
        generation: what its pieces belong to.
        number: counts requests in the order in which they came.
        since_seconds: when it began to wait, on the loop's clock.
        capacity: tokens of memory for keys and values that it has reserved.

    Args:
        index: which of the request's sequences it is.
        virtual_tokens: length of its adapter's learnt prompt.
        tells_cached: see `SequenceState`.
    """

    def __init__(
        self,
        generation: Generation,
        request: GenerationRequest,
        index: int,
        vocabulary: Vocabulary,
        *,
        number: int,
        since_seconds: float,
        virtual_tokens: int,
        tells_cached: bool,
    ) -> None:
        self.generation = generation
        self.number = number
        self.since_seconds = since_seconds
        self.capacity = 0
        self.sequence: SequenceState[Ticket] = SequenceState(
            request, index, self, vocabulary, tells_cached=tells_cached
        )
        self._virtual_tokens = virtual_tokens

    @property
    def request(self) -> GenerationRequest:
        return self.sequence.request

    @property
    def project_id(self) -> str:
        return self.generation.caller.project_id

    @property
    def is_low(self) -> bool:
        return self.generation.caller.priority == "low"

    @property
    def key(self) -> PrefixKey:
        return PrefixKey(self.project_id, self.request.adapter)

    @cached_property
    def prompt_ids(self) -> TokenIds:
        return as_token_ids(self.request.prompt_ids)

    @property
    def most_tokens(self) -> int:
        """What its keys and values take up at most."""
        return self._virtual_tokens + len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def first_capacity(self) -> int:
        """What it reserves to begin with, or to go on."""
        held = self._virtual_tokens + len(self.sequence.token_ids)
        return min(held + AHEAD_TOKENS, self.most_tokens)

    @property
    def is_full(self) -> bool:
        """Whether the next token does not fit into what it has reserved."""
        held = self._virtual_tokens + self.sequence.held_tokens
        return held + self.sequence.unread_tokens > self.capacity

    @property
    def grown_capacity(self) -> int:
        """What it reserves when it is full: by a quarter more, so that it is copied rarely."""
        return min(self.capacity + max(AHEAD_TOKENS, self.capacity // 4), self.most_tokens)

    @property
    def learnt_prompt_tokens(self) -> int:
        return self._virtual_tokens
