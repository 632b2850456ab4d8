"""Answers in OpenAI's wire format: whole, and in chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from worker.generation.request import Piece
from worker.generation.sampling import SampledToken
from worker.generation.vocabulary import Vocabulary
from worker.serving.generation import Generation


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Wording(Protocol):
    """How one endpoint words an answer."""

    @property
    def whole_object(self) -> str:
        """Return the `object` of a whole answer."""

    @property
    def chunk_object(self) -> str:
        """Return the `object` of a chunk."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the choices that a stream begins with, before there is any text."""

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        """Return one choice that is complete."""

    def chunk_choices(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the parts of one choice that a piece makes, each of which is a chunk."""


class CompletionWording:
    """`text_completion`, of which a chunk has the same form.

    Args:
        echoes: for each choice, the prompt's text that its own text follows.
    """

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, vocabulary: Vocabulary, echoes: Sequence[str], has_logprobs: bool) -> None:
        self._vocabulary = vocabulary
        self._has_logprobs = has_logprobs
        self._unsaid_echoes = dict(enumerate(echoes))
        self._offsets = dict.fromkeys(range(len(echoes)), 0)

    def opening(self) -> list[dict[str, Any]]:
        return []

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        echo = self._unsaid_echoes.pop(piece.index, "")
        return {
            "index": piece.index,
            "text": echo + piece.text,
            "logprobs": self._logprobs(piece, len(echo)),
            "finish_reason": piece.finish_reason,
        }

    def chunk_choices(self, piece: Piece) -> list[dict[str, Any]]:
        return [self.whole_choice(part) for part in stream_parts(piece)]

    def _logprobs(self, piece: Piece, echo_length: int) -> dict[str, Any] | None:
        """Return the parallel lists of this endpoint; `text_offset` counts from the echo."""
        if not self._has_logprobs:
            return None
        if not piece.prompt_tokens:
            self._offsets[piece.index] += echo_length
        tokens = piece.prompt_tokens + piece.tokens
        names = [self._vocabulary.text_of(token.token_id) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(self._offsets[piece.index])
            self._offsets[piece.index] += len(name)
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: SampledToken) -> dict[str, float] | None:
        """Return the alternatives and the token itself; nothing predicts a prompt's first."""
        if token.logprob is None:
            return None
        scored = (*token.top, (token.token_id, token.logprob))
        return {self._vocabulary.text_of(token_id): logprob for token_id, logprob in scored}


def whole(
    heading: Heading, wording: Wording, pieces: Sequence[Piece], prompt_tokens: int
) -> dict[str, Any]:
    """Return a complete answer."""
    return {
        **_common(heading, wording.whole_object),
        "choices": [wording.whole_choice(piece) for piece in pieces],
        "usage": usage(prompt_tokens, pieces),
    }


def chunk(
    heading: Heading,
    wording: Wording,
    choices: Sequence[Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """Return a part of an answer."""
    return {**_common(heading, wording.chunk_object), "choices": choices, **more}


def usage(prompt_tokens: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Count tokens from the last piece of each choice; the one that ends an answer counts."""
    completion_tokens = sum(piece.completion_tokens for piece in pieces)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(piece.cached_tokens for piece in pieces)},
    }


async def collect(generation: Generation) -> list[Piece]:
    """Wait for all of an answer and return one piece for each choice, in order."""
    parts: dict[int, list[Piece]] = {}
    async for piece in generation:
        parts.setdefault(piece.index, []).append(piece)
    return [
        replace(
            pieces[-1],
            text="".join(piece.text for piece in pieces),
            tokens=tuple(token for piece in pieces for token in piece.tokens),
            prompt_tokens=pieces[0].prompt_tokens,
        )
        for _, pieces in sorted(parts.items())
    ]


def stream_parts(piece: Piece) -> list[Piece]:
    """Split the end from the text before it: the chunk with a finish reason has no text."""
    if piece.finish_reason is None or not (piece.text or piece.tokens or piece.prompt_tokens):
        return [piece]
    end = replace(piece, text="", tokens=(), prompt_tokens=())
    return [replace(piece, finish_reason=None), end]


def _common(heading: Heading, kind: str) -> dict[str, Any]:
    return {
        "id": heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "system_fingerprint": heading.system_fingerprint,
    }
