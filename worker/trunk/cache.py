"""The key/value memory of one sequence."""

import torch
from torch import Tensor

_INITIAL_CAPACITY = 128


class SequenceCache:
    """Keys and values of one sequence in every layer, for `no_grad` use only.

    Memory is allocated ahead and doubled when full, so that a new token is one small copy.

    Args:
        num_layers: layers of the model that will append.
        capacity: tokens to make room for at first.
    """

    def __init__(self, num_layers: int, capacity: int = _INITIAL_CAPACITY) -> None:
        self._capacity = capacity
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return self._lengths[-1]

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
        all_keys = _with_room(self._keys[layer_idx], keys, start, max(end, self._capacity))
        all_values = _with_room(self._values[layer_idx], values, start, max(end, self._capacity))
        all_keys[:, :, start:end] = keys
        all_values[:, :, start:end] = values
        self._keys[layer_idx], self._values[layer_idx] = all_keys, all_values
        self._lengths[layer_idx] = end
        return all_keys[:, :, :end], all_values[:, :, :end]

    def copy(self, capacity: int = _INITIAL_CAPACITY) -> "SequenceCache":
        """Return another cache that holds the same tokens, with room for more."""
        other = SequenceCache(len(self._keys), capacity)
        for layer_idx, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            if keys is not None and values is not None:
                held = self._lengths[layer_idx]
                other.append(layer_idx, keys[:, :, :held], values[:, :, :held])
        return other

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        self._lengths = [min(held, length) for held in self._lengths]


def _with_room(held: Tensor | None, new: Tensor, length: int, needed: int) -> Tensor:
    if held is not None and held.shape[2] >= needed:
        return held
    capacity = needed if held is None else max(needed, 2 * held.shape[2])
    batch, heads, _, width = new.shape
    grown = torch.empty(batch, heads, capacity, width, dtype=new.dtype, device=new.device)
    if held is not None:
        grown[:, :, :length] = held[:, :, :length]
    return grown
