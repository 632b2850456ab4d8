"""From sampled tokens to text that may be shown: whole characters, and nothing of a stop string."""

import codecs
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass

from worker.generation.sampling import SampledToken
from worker.generation.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ShownText:
    """Text that can no longer change, and the tokens that begin in it.

    Attributes:
        is_stopped: a stop string follows; nothing comes after this.
    """

    text: str
    tokens: tuple[SampledToken, ...]
    is_stopped: bool = False


class TextStream:
    """The text of one sequence, released as early as it is certain.

    Held back are the bytes of a character that is not complete and text that a stop string may
    begin with. Tokens leave together with the text that they begin in, so that the tokens
    reported of a stopped answer are those of the text that is shown.

    Args:
        shown_special_ids: special tokens that are part of the text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        shown_special_ids: Set[int] = frozenset(),
    ) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._shown_special_ids = shown_special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._shown_length = 0
        self._waiting: deque[tuple[int, SampledToken]] = deque()

    def push(self, token: SampledToken) -> ShownText:
        """Add a token and return what it makes certain."""
        self._waiting.append((self._shown_length + len(self._held), token))
        self._held += self._decoder.decode(self._bytes_of(token.token_id))
        return self._release()

    def finish(self) -> ShownText:
        """Return all that was held back: no further token will come."""
        self._held += self._decoder.decode(b"", final=True)
        shown = self._release()
        if shown.is_stopped:
            return shown
        rest = tuple(token for _, token in self._waiting)
        return ShownText(shown.text + self._held, shown.tokens + rest)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._shown_special_ids:
            return self._vocabulary.bytes_of(token_id)
        return self._vocabulary.text_bytes_of(token_id)

    def _release(self) -> ShownText:
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        is_stopped = bool(found)
        certain = min(found) if found else len(self._held) - self._possible_stop_length()
        text, self._held = self._held[:certain], self._held[certain:]
        self._shown_length += certain
        tokens = []
        while self._waiting and self._waiting[0][0] < self._shown_length:
            tokens.append(self._waiting.popleft()[1])
        return ShownText(text, tuple(tokens), is_stopped)

    def _possible_stop_length(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=0))
        for length in range(longest, 0, -1):
            if self._held.endswith(tuple(stop[:length] for stop in self._stop if stop[:length])):
                return length
        return 0
