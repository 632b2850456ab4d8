"""Attention of one step's segments, each over itself and what it has cached."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.trunk.attention import attend
from worker.trunk.batch import Segment
from worker.trunk.cache import CacheRows, SequenceCache
from worker.trunk.token_block import SPAN, Token, TokenBlock, TokenStep


class StepAttention:
    """Where the segments of a step stand, and the room in their caches, for every layer.

    Args:
        segments: in order; what they have cached is a `SequenceCache`, which grows by this step.
        kv_heads: heads of every layer's keys and values.
        like: of their format and device, [head_dim].
        blocks: what computes short sequences that go on by a token: a block for each span of
            lengths, shortest first; without any, all are computed alike.

    Raises:
        TypeError: another kind of cache.
    """

    def __init__(
        self, segments: Sequence[Segment], kv_heads: int, like: Tensor, blocks: Sequence[TokenBlock]
    ) -> None:
        self._steps: list[TokenStep] = []
        apart: set[int] = set()
        for block, tokens in zip(blocks, _short_tokens(segments, len(blocks)), strict=True):
            step = block.begin(tokens, segments[-1].end, like) if tokens else None
            if step is not None:
                self._steps.append(step)
                apart.update(token.row for token in tokens)
        self._parts = [
            _Part.of(segment, kv_heads, like) for segment in segments if segment.start not in apart
        ]

    def __call__(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Return [tokens, heads * head_dim].

        Args:
            query: [tokens, heads, head_dim].
            key: [tokens, kv_heads, head_dim].
            value: like `key`.
            scaling: of the products of queries and keys.
            window: how many tokens one looks back at most, itself included.
        """
        attended = [
            part.attend(layer_idx, query, key, value, scaling, window) for part in self._parts
        ]
        if not self._steps:
            return attended[0] if len(attended) == 1 else torch.cat(attended)
        of_tokens = [step.attend(layer_idx, query, key, value, scaling) for step in self._steps]
        if self._steps[0].is_all:
            return of_tokens[0]
        rows = query.new_empty(query.shape[0], of_tokens[0].shape[1])
        for step, one in zip(self._steps, of_tokens, strict=True):
            rows.index_copy_(0, step.rows, one)
        for part, one in zip(self._parts, attended, strict=True):
            rows[part.start : part.end] = one
        return rows

    def end(self) -> None:
        """Complete the caches, after the last layer."""
        for step in self._steps:
            step.end()


def _short_tokens(segments: Sequence[Segment], spans: int) -> list[list[Token]]:
    """Return the sequences that go on by a token, by the span of their lengths."""
    found: list[list[Token]] = [[] for _ in range(spans)]
    for segment in segments:
        cache = segment.cache
        if segment.end - segment.start > 1 or not isinstance(cache, SequenceCache):
            continue
        # The token that comes is counted, too: it is behind as many as the cache holds.
        if 0 < cache.length < spans * SPAN:
            found[cache.length // SPAN].append(Token(segment.start, cache))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment in every layer."""

    start: int
    end: int
    cached: CacheRows | None

    @classmethod
    def of(cls, segment: Segment, kv_heads: int, like: Tensor) -> "_Part":
        cached = None
        if segment.cache is not None:
            if not isinstance(segment.cache, SequenceCache):
                raise TypeError("a decoder reads and writes a SequenceCache only")
            cached = segment.cache.extend(segment.end - segment.start, kv_heads, like)
        return cls(segment.start, segment.end, cached)

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Return [new, heads * head_dim]."""
        rows = slice(self.start, self.end)
        keys = key[rows].transpose(0, 1)[None]
        values = value[rows].transpose(0, 1)[None]
        if self.cached is not None:
            self.cached.new_keys[layer_idx].copy_(keys)
            self.cached.new_values[layer_idx].copy_(values)
            keys, values = self.cached.keys[layer_idx], self.cached.values[layer_idx]
        if self.end - self.start == 1:
            # A token looks everywhere, so the heads that share keys can be its queries.
            if window is not None:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            queries = query[rows].view(1, key.shape[1], -1, query.shape[2])
            attended = scaled_dot_product_attention(queries, keys, values, scale=scaling)
            return attended.reshape(1, -1)
        queries = query[rows].transpose(0, 1)[None]
        attended = attend(queries, keys, values, scaling, window)
        return attended[0].transpose(0, 1).reshape(self.end - self.start, -1)
