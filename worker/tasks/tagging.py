"""Words of a text, their first tokens and their BIO tags."""

from collections.abc import Sequence

from worker.tasks.windows import Window

OUTSIDE = "O"

Word = tuple[int, int]
"""First character, and the one after the last."""


def words_of(windows: Sequence[Window]) -> list[Word]:
    """Return the words that the tokenizer sees in a text."""
    words: list[Word] = []
    last: int | None = None
    for window in windows:
        for at in window.own:
            start, end = window.offsets[at]
            if start == end:
                continue
            if words and window.words[at] == last:
                words[-1] = (words[-1][0], end)
            else:
                words.append((start, end))
            last = window.words[at]
    return words


def first_tokens(windows: Sequence[Window], words: Sequence[Word]) -> list[int | None]:
    """Return for each word which token of the text is the first in it.

    None for a word that the tokenizer drops, or whose only token is another word's first.
    """
    offsets = [window.offsets[at] for window in windows for at in window.own]
    firsts: list[int | None] = []
    token = 0
    for start, end in words:
        while token < len(offsets) and (
            offsets[token][1] <= start or offsets[token][0] == offsets[token][1]
        ):
            token += 1
        is_there = token < len(offsets) and offsets[token][0] < end
        firsts.append(token if is_there else None)
        token += is_there
    return firsts


def tags_of_spans(words: Sequence[Word], spans: Sequence[tuple[int, int, str]]) -> list[str]:
    """Return the tags of words, from spans that do not overlap: start, end (exclusive), label.

    A span that begins or ends within a word has the whole word, unless one before has it already.
    """
    tags = [OUTSIDE] * len(words)
    word = 0
    for start, end, label in sorted(spans):
        while word < len(words) and words[word][1] <= start:
            word += 1
        bound = "B"
        while word < len(words) and words[word][0] < end:
            tags[word] = f"{bound}-{label}"
            bound = "I"
            word += 1
    return tags
