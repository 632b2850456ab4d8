"""Keys and values that sequences have left behind, for others that begin alike."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from worker.trunk.cache import SequenceCache

TokenIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """What two sequences must have in common before their tokens are compared.

    The base model and its revision are those of the loop, which has a store of its own.

    Attributes:
        project_id: nobody's tokens may be seen, nor timed, by another project.
        slot: the adapter's name in the loop, which is never used twice; None is the base model.
    """

    project_id: str
    slot: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What one sequence has left.

    Attributes:
        cache: holds the keys and values of `token_ids`, behind those of a learnt prompt.
        capacity: tokens that the cache has allocated memory for.
    """

    key: PrefixKey
    token_ids: TokenIds
    cache: SequenceCache
    capacity: int


class PrefixStore:
    """Prefixes, the least recently used first. One thread uses it."""

    def __init__(self) -> None:
        self._numbers = count()
        self._by_key: dict[PrefixKey, OrderedDict[int, Prefix]] = {}
        self._by_use: OrderedDict[int, Prefix] = OrderedDict()
        self.capacity = 0

    def __len__(self) -> int:
        return len(self._by_use)

    def longest(self, key: PrefixKey, token_ids: TokenIds) -> tuple[Prefix | None, int]:
        """Return the prefix with most first tokens in common, and how many these are.

        It then counts as used last.
        """
        best, best_number, best_length = None, -1, 0
        for number, prefix in self._by_key.get(key, {}).items():
            length = common_length(prefix.token_ids, token_ids)
            if length > best_length:
                best, best_number, best_length = prefix, number, length
        if best is not None:
            self._by_use.move_to_end(best_number)
        return best, best_length

    def add(self, prefix: Prefix) -> None:
        """Keep a prefix, unless another says as much; those that say less give way to it."""
        token_ids = prefix.token_ids
        for number, other in list(self._by_key.get(prefix.key, {}).items()):
            length = common_length(other.token_ids, token_ids)
            if length == len(token_ids):
                self._by_use.move_to_end(number)
                return
            if length == len(other.token_ids):
                self._remove(number)
        number = next(self._numbers)
        self._by_use[number] = prefix
        self._by_key.setdefault(prefix.key, OrderedDict())[number] = prefix
        self.capacity += prefix.capacity

    def evict(self) -> bool:
        """Drop the least recently used prefix, and say whether there was any."""
        if not self._by_use:
            return False
        self._remove(next(iter(self._by_use)))
        return True

    def forget_slot(self, slot: str) -> None:
        """Drop everything that was computed through an adapter."""
        for number, prefix in list(self._by_use.items()):
            if prefix.key.slot == slot:
                self._remove(number)

    def clear(self) -> None:
        self._by_use.clear()
        self._by_key.clear()
        self.capacity = 0

    def _remove(self, number: int) -> None:
        prefix = self._by_use.pop(number)
        same = self._by_key[prefix.key]
        del same[number]
        if not same:
            del self._by_key[prefix.key]
        self.capacity -= prefix.capacity


def as_token_ids(token_ids: Sequence[int]) -> TokenIds:
    return np.asarray(token_ids, dtype=np.int64)


def common_length(one: TokenIds, other: TokenIds) -> int:
    """Return how many first tokens two sequences have in common."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
