"""Where an answer stands in windows, and which spans of windows are the likeliest answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.tasks.windows import Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Placed:
    """An answer in windows.

    Attributes:
        places: its first and last token in each window.
        is_cut: no window has it whole; the one that has the most of it has that part.
    """

    places: Sequence[tuple[int, int]]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Span:
    """An answer: the characters from `start` up to `end`, none if there is no answer."""

    score: float
    start: int
    end: int


def place_answer(
    windows: Sequence[Window], span: tuple[int, int], nulls: Sequence[int]
) -> Placed | None:
    """Return where an answer stands in windows.

    Args:
        span: its characters; an empty one: there is no answer.
        nulls: the token of each window that says that it has none.

    Returns:
        None, if no token has any part of it.
    """
    nowhere = [(null, null) for null in nulls]
    start, end = span
    if start == end:
        return Placed(nowhere, is_cut=False)
    parts = [
        [at for at in window.text if window.offsets[at][0] < end and window.offsets[at][1] > start]
        for window in windows
    ]
    longest = max(map(len, parts))
    if not longest:
        return None
    # Tokens are the same in all windows: one that has fewer of the answer's does not have it whole.
    # If even the longest part touches a bound beyond which the text goes on, it may go on as well.
    best = next(number for number, part in enumerate(parts) if len(part) == longest)
    is_cut = _goes_on(windows, best, parts[best], start, end)
    places = [
        (part[0], part[-1])
        if len(part) == longest and (not is_cut or number == best)
        else nowhere[number]
        for number, part in enumerate(parts)
    ]
    return Placed(places, is_cut)


def best_spans(
    windows: Sequence[Window],
    logits: Floats,
    nulls: Sequence[int] | None,
    *,
    top_k: int,
    max_tokens: int | None,
    max_characters: int | None,
) -> list[Span]:
    """Return the likeliest answers, best first; at least one.

    Probabilities are over the tokens of all windows together (shared normalisation, Clark & Gardner
    2018, https://arxiv.org/abs/1710.10723), so that a window without the answer cannot outdo the
    one that has it. A span's score is the product of those of its start and of its end. Of one
    window it is what the question-answering pipeline of transformers 4 gave.

    Args:
        logits: [windows, 2, tokens], of starts and ends.
        nulls: the token of each window that says that it has no answer; it counts from the window
            that says so the least. None: there is an answer.
    """
    null_window = 0
    if nulls is not None:
        null_window = int(np.argmin([logits[row, :, null].sum() for row, null in enumerate(nulls)]))
    is_possible = np.zeros((len(windows), logits.shape[2]), np.bool_)
    for row, window in enumerate(windows):
        for at in window.text:
            is_possible[row, at] = window.offsets[at][0] < window.offsets[at][1]
    is_counted = is_possible.copy()
    if nulls is not None:
        is_counted[null_window, nulls[null_window]] = True
    if not is_counted.any():
        return [Span(0.0, 0, 0)]
    starts, ends = (_softmax(logits[:, bound], is_counted) for bound in (0, 1))

    found: dict[tuple[int, int], float] = {}
    if nulls is not None:
        null = null_window, nulls[null_window]
        found[0, 0] = float(starts[null] * ends[null])
    for row, window in enumerate(windows):
        places: list[int] = np.flatnonzero(is_possible[row]).tolist()
        if not places:
            continue
        first, last = np.array([window.offsets[at] for at in places]).T
        scores = np.triu(np.outer(starts[row, places], ends[row, places]))
        if max_tokens is not None:
            scores = np.tril(scores, max_tokens - 1)
        if max_characters is not None:
            scores[last[None, :] - first[:, None] > max_characters] = 0.0
        for index in _largest(scores.ravel(), top_k):
            start, end = divmod(int(index), len(places))
            if scores[start, end] > 0:
                span = _whole_words(window, places[start], places[end])
                found[span] = max(found.get(span, 0.0), float(scores[start, end]))
    best = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:top_k]
    return [Span(score, *span) for span, score in best] or [Span(0.0, 0, 0)]


def _goes_on(
    windows: Sequence[Window], number: int, part: Sequence[int], start: int, end: int
) -> bool:
    """Tell whether an answer has tokens before or after those that a window has of it."""
    window = windows[number]
    is_open_before = part[0] == window.text[0] and number > 0
    is_open_after = part[-1] == window.text[-1] and number < len(windows) - 1
    return (is_open_before and window.offsets[part[0]][0] > start) or (
        is_open_after and window.offsets[part[-1]][1] < end
    )


def _softmax(logits: Floats, is_counted: NDArray[np.bool_]) -> Floats:
    powers = np.where(is_counted, np.exp(logits - logits[is_counted].max()), 0.0)
    normalised: Floats = powers / powers.sum()
    return normalised


def _largest(values: Floats, count: int) -> NDArray[np.int64]:
    """Return the places of the largest values, in no order."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(values, -count)[-count:]


def _whole_words(window: Window, start: int, end: int) -> tuple[int, int]:
    """Return the characters of the words that a span of tokens begins and ends in."""
    while start > window.text[0] and _is_one_word(window, start - 1, start):
        start -= 1
    while end < window.text[-1] and _is_one_word(window, end, end + 1):
        end += 1
    return window.offsets[start][0], window.offsets[end][1]


def _is_one_word(window: Window, left: int, right: int) -> bool:
    return window.words[left] is not None and window.words[left] == window.words[right]
