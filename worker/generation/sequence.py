"""One sequence while it is generated: its prompt, cache, random generator and text."""

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
    """The state of one sequence between steps. One thread advances it.

    Attributes:
        owner: whom its pieces are for.
        sampled_ids: tokens sampled so far, the one that ends the answer included.

    Args:
        cached: how many of the prompt's tokens the cache holds already, all but one at most.
    """

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        owner: Owner,
        cache: SequenceCache,
        vocabulary: Vocabulary,
        cached: int = 0,
    ) -> None:
        self.request = request
        self.owner = owner
        self.sampled_ids: list[int] = []
        self._index = index
        self._cache = cache
        self._end_token_ids = vocabulary.end_token_ids
        self._sampler = Sampler(request.sampling)
        self._stream = TextStream(vocabulary, request.stop)
        # Tokens that the cache does not hold yet: the prompt at first, then the latest token.
        self._pending = request.prompt_ids[cached:]
        self._prompt_tokens: list[SampledToken] = []

    @property
    def generated_tokens(self) -> int:
        return len(self.sampled_ids)

    @property
    def is_in_prompt(self) -> bool:
        """Whether part of the prompt has not been through the model yet."""
        return not self.sampled_ids

    def share(self, budget: int) -> Share[Owner]:
        """Return the next `budget` tokens at most."""
        token_ids = self._pending[:budget]
        if self._is_scored:
            wanted = len(token_ids)
        else:
            wanted = 1 if len(token_ids) == len(self._pending) else 0
        rows = SequenceRows(token_ids, self.request.adapter, self._cache)
        return Share(self, rows, self._cache.length, wanted)

    def rewind(self, share: Share[Owner]) -> None:
        """Forget what a step that failed has put into the cache."""
        self._cache.truncate(share.start)

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
    def _is_scored(self) -> bool:
        return self.request.has_prompt_logprobs and self.is_in_prompt

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
        )
