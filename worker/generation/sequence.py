"""One sequence while it is generated: its prompt, cache, random generator and text.

A sequence can lose its cache between two steps and get another one later. What it has generated
goes through the model again then, as part of its prompt; its random generator and its text stay as
they are, so its answer is the same.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from worker.generation.request import FinishReason, GenerationRequest, Piece
from worker.generation.sampling import SampledToken, Sampler, score
from worker.generation.stopping import ShownText, TextStream
from worker.generation.vocabulary import Vocabulary
from worker.trunk.batch import SequenceRows
from worker.trunk.cache import SequenceCache

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Share(Generic[Owner]):
    """What one sequence puts into one step.

    Attributes:
        rows: its next tokens.
        start: how many tokens its cache held before.
        wanted: of how many of its last rows the step must compute logits.
    """

    sequence: "SequenceState[Owner]"
    rows: SequenceRows
    start: int
    wanted: int


class SequenceState(Generic[Owner]):
    """The state of one sequence between steps. One thread advances it, once it is open.

    Attributes:
        owner: whom its pieces are for.
        sampled_ids: tokens sampled so far, the one that ends the answer included.
        cached_tokens: how many tokens of its prompt others had computed when it was first opened.

    Args:
        index: which of the submitted requests this is; its pieces carry it.
        tells_cached: whether its pieces carry `cached_tokens`, too. One of several choices does.
    """

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        owner: Owner,
        vocabulary: Vocabulary,
        *,
        tells_cached: bool = True,
    ) -> None:
        self.request = request
        self.owner = owner
        self.sampled_ids: list[int] = []
        self.cached_tokens: int | None = None
        self._index = index
        self._tells_cached = tells_cached
        self._cache: SequenceCache | None = None
        # Tokens at the cache's beginning that are no tokens of this sequence: a learnt prompt.
        self._virtual_tokens = 0
        self._end_token_ids = vocabulary.end_token_ids
        self._sampler = Sampler(request.sampling)
        self._stream = TextStream(vocabulary, request.stop, request.shown_special_ids)
        # Tokens that the cache does not hold yet: the prompt at first, then the latest token.
        self._pending = request.prompt_ids
        self._prompt_tokens: list[SampledToken] = []

    @property
    def generated_tokens(self) -> int:
        return len(self.sampled_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt and what was sampled so far."""
        return (*self.request.prompt_ids, *self.sampled_ids)

    @property
    def is_open(self) -> bool:
        """Whether it has a cache, and so can take part in a step."""
        return self._cache is not None

    @property
    def held_tokens(self) -> int:
        """How many of `token_ids` the cache holds."""
        return self._open_cache.length - self._virtual_tokens

    @property
    def room(self) -> int:
        """How many tokens the cache was made for, a learnt prompt included."""
        return self._open_cache.capacity

    @property
    def unread_tokens(self) -> int:
        """How many of `token_ids` have yet to go through the model."""
        return len(self._pending)

    @property
    def is_in_prompt(self) -> bool:
        """Whether tokens before the latest have to go through the model, for whatever reason."""
        return not self.sampled_ids or len(self._pending) > 1

    def open(self, cache: SequenceCache, held: int) -> None:
        """Take a cache that holds the first `held` of `token_ids`, all but one at most.

        More tokens than that at its beginning are a learnt prompt.
        """
        self._cache = cache
        self._virtual_tokens = cache.length - held
        self._pending = self.token_ids[held:]
        if self.cached_tokens is None:
            self.cached_tokens = held
        if not self.sampled_ids:
            # What was scored of a prompt is scored again.
            self._prompt_tokens = []

    def close(self) -> SequenceCache:
        """Give up the cache and return it; the sequence goes on once it is opened again."""
        cache, self._cache = self._open_cache, None
        return cache

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens in the cache, a learnt prompt included."""
        self._cache = self._open_cache.copy(capacity)

    def copied_cache(self, held: int, capacity: int) -> SequenceCache:
        """Return a copy of the cache with its first `held` tokens alone, and a learnt prompt."""
        return self._open_cache.copy(capacity, self._virtual_tokens + held)

    def share(self, budget: int) -> Share[Owner]:
        """Return the next `budget` tokens at most."""
        token_ids = self._pending[:budget]
        if self._is_scored:
            wanted = len(token_ids)
        else:
            wanted = 1 if len(token_ids) == len(self._pending) else 0
        cache = self._open_cache
        rows = SequenceRows(token_ids, self.request.adapter, cache)
        return Share(self, rows, cache.length, wanted)

    def rewind(self, share: Share[Owner]) -> None:
        """Forget what a step that failed has put into the cache."""
        self._open_cache.truncate(share.start)

    def advance(self, share: Share[Owner], logits: Tensor) -> Piece | None:
        """Take in what a step computed and return the text that it makes certain, if any.

        Args:
            share: what this sequence put into the step.
            logits: [share.wanted, vocab] float32.

        Raises:
            FloatingPointError: the logits are not finite.
        """
        if self._is_scored:
            self._score_prompt(share, logits)
        self._pending = self._pending[len(share.rows.token_ids) :]
        if self._pending:
            return None
        if self.request.max_tokens == 0:
            return self._piece(ShownText("", ()), "length")
        return self._append(self._sampler.sample(logits[-1]))

    @property
    def _open_cache(self) -> SequenceCache:
        assert self._cache is not None, "the sequence is not open"
        return self._cache

    @property
    def _is_scored(self) -> bool:
        return self.request.has_prompt_logprobs and not self.sampled_ids

    def _score_prompt(self, share: Share[Owner], logits: Tensor) -> None:
        """Score the prompt tokens that follow this step's rows; nothing predicts the first."""
        prompt_ids, alternatives = self.request.prompt_ids, self.request.sampling.top_logprobs or 0
        # Counted here, since a cache can begin with what an adapter has learnt.
        start = len(prompt_ids) - len(self._pending)
        if start == 0:
            self._prompt_tokens.append(SampledToken(prompt_ids[0]))
        following = prompt_ids[start + 1 : start + 1 + share.wanted]
        self._prompt_tokens.extend(
            score(row, token_id, alternatives)
            for row, token_id in zip(logits, following, strict=False)
        )

    def _append(self, token: SampledToken) -> Piece | None:
        self.sampled_ids.append(token.token_id)
        if token.token_id in self._end_token_ids:
            return self._piece(self._stream.finish(), "stop")
        shown = self._stream.push(token)
        if shown.is_stopped:
            return self._piece(shown, "stop")
        if self.generated_tokens == self.request.max_tokens:
            rest = self._stream.finish()
            whole = ShownText(shown.text + rest.text, shown.tokens + rest.tokens)
            return self._piece(whole, "stop" if rest.is_stopped else "length")
        self._pending = (token.token_id,)
        if not shown.text and not self._prompt_tokens:
            return None
        return self._piece(shown)

    def _piece(self, shown: ShownText, finish_reason: FinishReason | None = None) -> Piece:
        prompt_tokens, self._prompt_tokens = tuple(self._prompt_tokens), []
        return Piece(
            index=self._index,
            text=shown.text,
            tokens=shown.tokens,
            completion_tokens=self.generated_tokens,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=self.cached_tokens or 0 if self._tells_cached else 0,
        )
