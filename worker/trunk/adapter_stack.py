"""Adapters in use, laid over one another so that one product computes all of them.

A step of generation gives most adapters a row or two. A small product for each adapter and layer
costs more in calls than in arithmetic; laid over one another, neighbours are one batched product,
without padding, and an adapter that comes or goes moves one other at most.
"""

from collections.abc import Mapping
from operator import attrgetter

import torch
from torch import Tensor

from worker.trunk.lora_update import LoraUpdate


class Updates:
    """The updates of one adapter.

    Attributes:
        of: by the layer that each belongs to.
    """

    def __init__(self, of: Mapping[object, LoraUpdate]) -> None:
        self.of = of
        first = next(iter(of.values()))
        # What was made in inference mode counts no versions; nothing else may change it.
        self._counted = [one for one in (first.a, first.b) if not one.is_inference()]

    @property
    def version(self) -> int:
        """A number that changes whenever training or a checkpoint does: they change all weights."""
        return sum(map(attrgetter("_version"), self._counted))


class AdapterStack:
    """Adapters that change the same layers by the same ranks.

    Args:
        dtype: format that the products run in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        # Of each layer, `a` [places, r, in] and `b` [places, r, out], scaled.
        self._layers: dict[object, tuple[Tensor, Tensor]] = {}
        self._ranges: dict[tuple[int, int], Mapping[object, tuple[Tensor, Tensor]]] = {}
        self._dtype = dtype
        self._names: list[str | None] = []
        self._places: dict[str, int] = {}
        self._versions: dict[str, int] = {}

    def place_of(self, name: str) -> int | None:
        return self._places.get(name)

    def layers(self, first: int, end: int) -> Mapping[object, tuple[Tensor, Tensor]]:
        """Return the weights in a half-open range of places, by layer.

        Returns:
            `A` [places, in, r] and `B` [places, r, out], scaled: `x @ A @ B` is the update. They
            are views, which later arrangements write to.
        """
        if (first, end) not in self._ranges:
            self._ranges[first, end] = {
                layer: (a[first:end].transpose(1, 2), b[first:end])
                for layer, (a, b) in self._layers.items()
            }
        return self._ranges[first, end]

    def arrange(self, adapters: Mapping[str, Updates]) -> None:
        """Let the first places hold just these adapters, in any order, with few copies."""
        for name, updates in adapters.items():
            if self._versions.get(name) != updates.version:
                self.forget(name)
        self._make_room(len(adapters), next(iter(adapters.values())))
        first = self._names[: len(adapters)]
        settled = set(first)
        holes = [place for place, name in enumerate(first) if name not in adapters]
        for name, updates in adapters.items():
            if name not in settled:
                self._settle(name, updates, holes.pop(0))

    def forget(self, name: str) -> None:
        """Free the place of an adapter; one that has none is not an error."""
        self._versions.pop(name, None)
        if (place := self._places.pop(name, None)) is not None:
            self._names[place] = None

    def _settle(self, name: str, updates: Updates, place: int) -> None:
        """Move an adapter to a place; the one that is there is forgotten."""
        if (displaced := self._names[place]) is not None:
            self.forget(displaced)
        former = self._places.get(name)
        for layer, (a, b) in self._layers.items():
            if former is not None:
                a[place], b[place] = a[former], b[former]
            else:
                update = updates.of[layer]
                a[place], b[place] = update.a, update.b.t() * update.scaling
        if former is not None:
            self._names[former] = None
        self._names[place] = name
        self._places[name] = place
        self._versions[name] = updates.version

    def _make_room(self, needed: int, updates: Updates) -> None:
        held = len(self._names)
        if needed <= held:
            return
        places = max(needed, 2 * held)
        # Before anything else: without memory for all layers, no view of what was is left.
        self._ranges.clear()
        # Made as ordinary tensors: a trunk can be used within inference mode and without it.
        with torch.inference_mode(False), torch.no_grad():
            for layer, update in updates.of.items():
                new_a = update.a.new_empty(places, *update.a.shape, dtype=self._dtype)
                new_b = update.b.new_empty(places, *update.b.t().shape, dtype=self._dtype)
                if layer in self._layers:
                    old_a, old_b = self._layers[layer]
                    # It has more places, if there was no memory for all layers before.
                    new_a[:held], new_b[:held] = old_a[:held], old_b[:held]
                self._layers[layer] = new_a, new_b
        self._names.extend([None] * (places - held))
