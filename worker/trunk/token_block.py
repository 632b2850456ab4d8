"""Keys and values of short sequences side by side, so that a step attends to all in one call.

A call for each sequence and layer costs more than its arithmetic while sequences are short. What
is here are copies: after each step the sequences' own caches hold everything. Within a block, a
sequence finds the same to the last bit whatever its neighbours are, and alone.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.trunk.cache import SequenceCache

# Lengths that share a block: all take as long as the longest, so that these must not differ by more
# than a call of attention is worth.
SPAN = 128
# Longer sequences take longer than a call; and up to here torch's product of probabilities and
# values is one block, to which masked positions add nothing, not even another order of sums.
MOST_TOKENS = 256
# Of each block, beside what the caches take.
_MOST_BYTES = 1 << 28
_CAPACITY_STEP = 64
# Sums run over as many lanes: of whole ones, what is masked at the end changes no order either.
_LANES = 16


@dataclass(frozen=True, slots=True)
class Token:
    """A sequence that goes on by one token.

    Attributes:
        row: of the batch.
        cache: what is before it.
    """

    row: int
    cache: SequenceCache


class TokenBlock:
    """The sequences of the last step, each in a place. Used by one thread at a time.

    Args:
        num_layers: of the model.
        kv_heads: heads of every layer's keys and values.
    """

    def __init__(self, num_layers: int, kv_heads: int) -> None:
        self._num_layers = num_layers
        self._kv_heads = kv_heads
        # [2, layers, places, capacity, kv_heads, head_dim]; keys, then values.
        self._held: Tensor | None = None
        self._places: list[_Place] = []

    def begin(self, tokens: Sequence[Token], num_rows: int, like: Tensor) -> "TokenStep | None":
        """Return a step of sequences of up to `MOST_TOKENS`, this token included.

        Args:
            num_rows: of the batch.
            like: of the format and device of keys, [head_dim].

        Returns:
            None, if they take too much memory.
        """
        longest = max(token.cache.length for token in tokens) + 1
        held = self._with_room(len(tokens), longest, like)
        if held is None:
            return None
        caches = self._settle([token.cache for token in tokens])
        for index, (place, cache) in enumerate(zip(self._places, caches, strict=True)):
            if place.changes != cache.changes:
                _load(held[:, :, index], cache)
                place.changes = cache.changes
        row_of = {token.cache: token.row for token in tokens}
        rows = [row_of[cache] for cache in caches]
        return TokenStep(held, self._places, caches, rows, num_rows)

    def _settle(self, caches: Sequence[SequenceCache]) -> list[SequenceCache]:
        """Give just these sequences places, of which few move, and return them by place."""
        new = dict.fromkeys(caches)
        for index in reversed(range(len(self._places))):
            cache = self._places[index].of()
            if cache in new:
                del new[cache]
                continue
            last = self._places.pop()
            if index < len(self._places):
                self._places[index] = _Place(last.of)
        self._places += [_Place(weakref.ref(cache)) for cache in new]
        settled = [place.of() for place in self._places]
        return [cache for cache in settled if cache is not None]

    def _with_room(self, places: int, tokens: int, like: Tensor) -> Tensor | None:
        """Return what is held, made anew unless it has room."""
        held = self._held
        if held is not None and (held.dtype, held.device) != (like.dtype, like.device):
            held = None
        if held is not None and held.shape[2] >= places and held.shape[3] >= tokens:
            return held
        capacity = -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP
        shapes = [self._shape(1 << (places - 1).bit_length(), capacity, like)]
        if held is not None:
            # Without losing what it had, if there is memory for both.
            larger = max(shapes[0][2], held.shape[2]), max(capacity, held.shape[3])
            shapes.insert(0, self._shape(*larger, like))
        fitting = [one for one in shapes if one.numel() * like.element_size() <= _MOST_BYTES]
        if not fitting:
            return None
        self._held = None
        self._places = [_Place(place.of) for place in self._places]
        # An ordinary tensor: a trunk can be used within inference mode and without it.
        with torch.inference_mode(False), torch.no_grad():
            self._held = torch.zeros(fitting[0], dtype=like.dtype, device=like.device)
        return self._held

    def _shape(self, places: int, capacity: int, like: Tensor) -> torch.Size:
        return torch.Size((2, self._num_layers, places, capacity, self._kv_heads, like.shape[-1]))


class TokenStep:
    """One step of the sequences in a block.

    Attributes:
        rows: of the batch, by place, [places] int64.
        is_all: they are all rows, in order.

    Args:
        held: see `TokenBlock`.
        places: as many as `caches`, in order.
        caches: by place.
        rows: by place.
        num_rows: of the batch.
    """

    def __init__(
        self,
        held: Tensor,
        places: "Sequence[_Place]",
        caches: Sequence[SequenceCache],
        rows: Sequence[int],
        num_rows: int,
    ) -> None:
        self._held, self._places, self._caches = held, places, caches
        lengths = [cache.length for cache in caches]
        self.rows = torch.tensor(rows, device=held.device)
        self.is_all = list(rows) == list(range(num_rows))
        _, _, _, capacity, _, _ = held.shape
        end = min(-(-(max(lengths) + 1) // _LANES) * _LANES, capacity)
        self._keys, self._values = (
            side.transpose(2, 3).unbind(0) for side in held[:, :, : len(caches), :end].unbind(0)
        )
        self._new_keys, self._new_values = (
            side.unbind(0) for side in held.flatten(4).flatten(2, 3).unbind(0)
        )
        newest = torch.tensor(lengths, device=held.device)
        self._at = torch.arange(len(caches), device=held.device) * capacity + newest
        is_behind = torch.arange(end, device=held.device) > newest[:, None]
        self._mask = torch.zeros(is_behind.shape, dtype=held.dtype, device=held.device)
        self._mask.masked_fill_(is_behind, -torch.inf)
        self._mask = self._mask[:, None, None]

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Return what the tokens see in one layer, [places, heads * head_dim].

        Args:
            query: of the whole batch, as the others, [tokens, heads, head_dim].
            key: [tokens, kv_heads, head_dim].
            value: like `key`.
            scaling: of the products of queries and keys.
        """
        if not self.is_all:
            query, key, value = (one.index_select(0, self.rows) for one in (query, key, value))
        self._new_keys[layer_idx].index_copy_(0, self._at, key.flatten(1))
        self._new_values[layer_idx].index_copy_(0, self._at, value.flatten(1))
        # A token looks everywhere, so the heads that share keys can be its queries.
        attended = scaled_dot_product_attention(
            query.reshape(key.shape[0], key.shape[1], -1, key.shape[2]),
            self._keys[layer_idx],
            self._values[layer_idx],
            attn_mask=self._mask,
            scale=scaling,
        )
        return attended.reshape(len(self._caches), -1)

    def end(self) -> None:
        """Let the sequences' own caches hold the token, too."""
        for index, (place, cache) in enumerate(zip(self._places, self._caches, strict=True)):
            cache.push(self._held[:, :, index, cache.length])
            place.changes = cache.changes


@dataclass(slots=True)
class _Place:
    """Whose keys and values a place holds.

    Attributes:
        changes: the cache's own number when the place was like it; None: it never was.
    """

    of: "weakref.ref[SequenceCache]"
    changes: int | None = None


def _load(place: Tensor, cache: SequenceCache) -> None:
    """Fill a place, [2, layers, capacity, kv_heads, head_dim], with what a cache holds."""
    held = cache.held(place[0, 0, 0])
    place[:, :, : cache.length] = held.transpose(2, 3)
    # What no sequence should have is a number all the same: masked, it is multiplied by zero.
    place[:, :, cache.length :] = 0
