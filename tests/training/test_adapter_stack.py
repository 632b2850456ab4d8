"""Adapters that lie over one another: what is left of an arrangement that failed half-way."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from worker.trunk.adapter_stack import AdapterStack, Updates
from worker.trunk.lora_update import LoraUpdate

# So many numbers as no machine has memory for.
TOO_WIDE = 1 << 45


def updates(value: float, last_width: int = 3) -> Updates:
    """An adapter of two layers."""
    return Updates(
        {
            layer: LoraUpdate(
                torch.full((1, 1), value).expand(2, width), torch.full((3, 2), value), scaling=2.0
            )
            for layer, width in (("first", 3), ("last", last_width))
        }
    )


def held(stack: AdapterStack, count: int) -> Mapping[str, tuple[float, float]]:
    """Return what each of the first places holds in the first layer and in the last."""
    layers = stack.layers(0, count)

    def value(layer: str, place: int) -> float:
        a: Tensor = layers[layer][0][place]
        return float(a.flatten()[0])

    places = {name: stack.place_of(name) for name in ("a", "b", "c")}
    return {
        name: (value("first", place), value("last", place))
        for name, place in places.items()
        if place is not None and place < count
    }


def test_without_memory_for_all_layers_the_next_arrangement_is_right() -> None:
    stack = AdapterStack(torch.float32)
    stack.arrange({"a": updates(1)})
    assert held(stack, 1) == {"a": (1, 1)}

    with pytest.raises(RuntimeError):
        stack.arrange({"b": updates(9, TOO_WIDE), "c": updates(9, TOO_WIDE)})

    stack.arrange({"b": updates(2)})
    assert held(stack, 1) == {"b": (2, 2)}
    stack.arrange({"b": updates(2), "a": updates(1), "c": updates(3)})
    assert held(stack, 3) == {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
