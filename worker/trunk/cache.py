"""The key/value memory of one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_INITIAL_CAPACITY = 128


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Where one step writes and what it reads, in every layer.

    Attributes:
        new_keys: room for the keys of the new tokens, [1, kv_heads, new, head_dim] a layer.
        new_values: like `new_keys`.
        keys: all keys, the new tokens' included, [1, kv_heads, old + new, head_dim] a layer.
        values: like `keys`.
    """

    new_keys: Sequence[Tensor]
    new_values: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class SequenceCache:
    """Keys and values of one sequence in every layer, for `no_grad` use only.

    Memory is allocated ahead and doubled when full, so that a new token is one small copy.

    Attributes:
        capacity: tokens that there was to be room for at first.
        changes: a number that is another one whenever it holds something else.

    Args:
        num_layers: layers of the model that will append.
    """

    def __init__(self, num_layers: int, capacity: int = _INITIAL_CAPACITY) -> None:
        self.capacity = capacity
        self.changes = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._lengths = [0] * num_layers
        # All layers in one piece, [2, layers, 1, kv_heads, capacity, head_dim], of which the
        # tensors above are views; None while layers are appended to one by one.
        self._whole: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return self._lengths[-1]

    @property
    def bytes_per_token(self) -> int:
        """What one more token adds to a cache that holds some, in all layers together."""
        held = [tensor for tensor in (*self._keys, *self._values) if tensor is not None]
        return sum(one.shape[1] * one.shape[3] * one.element_size() for one in held)

    def extend(self, new: int, kv_heads: int, like: Tensor) -> CacheRows:
        """Make room for tokens in every layer at once; whoever calls this fills it.

        Args:
            new: how many tokens.
            kv_heads: heads of every layer's keys and values.
            like: of their format and device, [..., head_dim].
        """
        start, end = self.length, self.length + new
        whole = self._with_room_for(end, kv_heads, like)
        self.changes += 1
        self._lengths = [end] * len(self._keys)
        new_keys, new_values = whole[:, :, :, :, start:end].unbind(0)
        keys, values = whole[:, :, :, :, :end].unbind(0)
        return CacheRows(new_keys.unbind(0), new_values.unbind(0), keys.unbind(0), values.unbind(0))

    def push(self, token: Tensor) -> None:
        """Add one token to every layer.

        Args:
            token: its keys and values, [2, layers, kv_heads, head_dim].
        """
        position = self.length
        whole = self._with_room_for(position + 1, token.shape[2], token)
        whole[:, :, 0, :, position] = token
        self.changes += 1
        self._lengths = [position + 1] * len(self._keys)

    def held(self, like: Tensor) -> Tensor:
        """Return what every layer holds, [2, layers, kv_heads, length, head_dim].

        Args:
            like: of the shape and format of one token's keys in one layer, [kv_heads, head_dim].
        """
        whole = self._with_room_for(self.length, like.shape[0], like)
        return whole[:, :, 0, :, : self.length]

    def append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens to one layer and return all that it holds, as views.

        Args:
            layer_idx: which layer.
            keys: [1, kv_heads, new, head_dim].
            values: [1, kv_heads, new, head_dim].

        Returns:
            Keys and values, each [1, kv_heads, old + new, head_dim].
        """
        start = self._lengths[layer_idx]
        end = start + keys.shape[2]
        all_keys = _with_room(self._keys[layer_idx], keys, start, max(end, self.capacity))
        all_values = _with_room(self._values[layer_idx], values, start, max(end, self.capacity))
        if all_keys is not self._keys[layer_idx]:
            self._whole = None
        all_keys[:, :, start:end] = keys
        all_values[:, :, start:end] = values
        self._keys[layer_idx], self._values[layer_idx] = all_keys, all_values
        self._lengths[layer_idx] = end
        self.changes += 1
        return all_keys[:, :, :end], all_values[:, :, :end]

    def copy(self, capacity: int = _INITIAL_CAPACITY, length: int | None = None) -> "SequenceCache":
        """Return another cache that holds the same tokens, with room for more.

        Args:
            capacity: tokens to make room for at least.
            length: how many of the first tokens it holds; None means all.
        """
        other = SequenceCache(len(self._keys), capacity)
        for layer_idx, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            if keys is not None and values is not None:
                held = self._lengths[layer_idx]
                held = held if length is None else min(held, length)
                other.append(layer_idx, keys[:, :, :held], values[:, :, :held])
        return other

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        self._lengths = [min(held, length) for held in self._lengths]
        self.changes += 1

    def _with_room_for(self, tokens: int, kv_heads: int, like: Tensor) -> Tensor:
        """Return all layers in one piece that has room for so many tokens."""
        whole = self._whole
        if whole is None or whole.shape[4] < tokens:
            whole = self._gather(max(tokens, self.capacity), kv_heads, like)
        return whole

    def _gather(self, needed: int, kv_heads: int, like: Tensor) -> Tensor:
        """Return all layers in one piece, with room for `needed` tokens and what is held."""
        capacity = needed if self._whole is None else max(needed, 2 * self._whole.shape[4])
        shape = (2, len(self._keys), 1, kv_heads, capacity, like.shape[-1])
        whole = torch.empty(shape, dtype=like.dtype, device=like.device)
        if self._whole is not None:
            whole[:, :, :, :, : self.length] = self._whole[:, :, :, :, : self.length]
        else:
            for side, layers in enumerate((self._keys, self._values)):
                for layer_idx, (held, length) in enumerate(zip(layers, self._lengths, strict=True)):
                    if held is not None:
                        if held.shape[1] != kv_heads or held.shape[3] != like.shape[-1]:
                            # Sizes of one would fit any.
                            raise ValueError("what the cache holds is of another model")
                        whole[side, layer_idx, :, :, :length] = held[:, :, :length]
        self._whole = whole
        self._keys, self._values = list(whole[0].unbind(0)), list(whole[1].unbind(0))
        return whole


def _with_room(held: Tensor | None, new: Tensor, length: int, needed: int) -> Tensor:
    if held is not None and held.shape[2] >= needed:
        return held
    capacity = needed if held is None else max(needed, 2 * held.shape[2])
    batch, heads, _, width = new.shape
    grown = torch.empty(batch, heads, capacity, width, dtype=new.dtype, device=new.device)
    if held is not None:
        grown[:, :, :length] = held[:, :, :length]
    return grown
