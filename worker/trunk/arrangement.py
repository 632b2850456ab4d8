"""In which order the segments of a batch are computed, so that adapters are computed together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from worker.trunk.adapter_stack import AdapterStack, Updates
from worker.trunk.batch import PackedBatch, Segment
from worker.trunk.lora_update import LoraUpdate

# With more rows than this, an adapter's own product is as fast as one with others.
FEW_ROWS = 8


class Arrangement:
    """The attached adapters, and the stacks of those that steps of generation use.

    Args:
        dtype: format that the products run in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._updates: dict[str, Updates] = {}
        self._stack_of: dict[str, AdapterStack] = {}
        self._stacks: dict[frozenset[tuple[object, int]], AdapterStack] = {}

    def add(self, name: str, updates: Mapping[object, LoraUpdate]) -> None:
        """Take up an adapter by its updates of layers."""
        shape = frozenset((layer, update.a.shape[0]) for layer, update in updates.items())
        self._updates[name] = Updates(updates)
        self._stack_of[name] = self._stacks.setdefault(shape, AdapterStack(self._dtype))

    def remove(self, name: str) -> None:
        """Forget an adapter; one that was not added is not an error."""
        self._updates.pop(name, None)
        if (stack := self._stack_of.pop(name, None)) is None:
            return
        stack.forget(name)
        if stack not in self._stack_of.values():
            # Nobody is left of this shape: its memory is given back.
            self._stacks = {s: one for s, one in self._stacks.items() if one is not stack}

    def find(self, name: str) -> tuple[AdapterStack, int] | None:
        """Return the stack that holds an adapter, and its place in it."""
        stack = self._stack_of.get(name)
        place = stack.place_of(name) if stack is not None else None
        return None if stack is None or place is None else (stack, place)

    def order(self, segments: Sequence[Segment]) -> list[int]:
        """Stack what has few rows, and return the segments' indices as they stand in the stacks."""
        counts = Counter[str]()
        for segment in segments:
            if segment.adapter is not None:
                counts[segment.adapter] += segment.end - segment.start
        together: dict[AdapterStack, dict[str, Updates]] = {}
        for name, count in counts.items():
            updates = self._updates.get(name)
            # What is being trained changes with each step: a copy would be made for nothing.
            if updates is None or next(iter(updates.of.values())).a.requires_grad:
                continue
            if count <= FEW_ROWS or self.find(name) is not None:
                together.setdefault(self._stack_of[name], {})[name] = updates
        for stack, adapters in together.items():
            stack.arrange(adapters)
        ranks = {stack: rank for rank, stack in enumerate(together)}

        def key(index: int) -> tuple[int, int, str]:
            name = segments[index].adapter
            if name is None:
                return -1, 0, ""
            found = self.find(name)
            return (ranks[found[0]], found[1], "") if found else (len(ranks), 0, name)

        return sorted(range(len(segments)), key=key)


def reordered(batch: PackedBatch, order: Sequence[int]) -> tuple[PackedBatch, Tensor | None]:
    """Return a batch with its segments in an order, and where each of its rows went, [tokens].

    None in the place of that: every row is where it was.
    """
    if list(order) == list(range(len(order))):
        return batch, None
    segments: list[Segment] = []
    end = 0
    for index in order:
        old = batch.segments[index]
        start, end = end, end + old.end - old.start
        segments.append(replace(old, start=start, end=end))
    device = batch.input_ids.device
    source = _rows([batch.segments[index] for index in order]).to(device)
    places = torch.empty_like(source)
    places[source] = torch.arange(end, device=device)
    moved = PackedBatch(batch.input_ids[source], batch.position_ids[source], tuple(segments))
    return moved, places


def _rows(segments: Iterable[Segment]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(range(one.start, one.end) for one in segments)))
