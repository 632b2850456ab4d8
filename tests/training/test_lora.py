"""The linear layer with low-rank updates against its formula, gradients and dropout included."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from worker.trunk.batch import Segment
from worker.trunk.lora import LoraPair, LoraSlotsLinear
from worker.trunk.lora_function import LoraRows, LoraUpdate, lora_linear
from worker.trunk.routing import Routing, route

TOKENS, IN, OUT = 7, 5, 6
CPU = torch.device("cpu")
LAYOUTS: dict[str, list[tuple[int, int, str | None]]] = {
    "all rows": [(0, 7, "red")],
    "one range": [(0, 2, None), (2, 5, "red"), (5, 7, None)],
    "neighbours": [(0, 2, "red"), (2, 4, "red"), (4, 7, "blue")],
    "scattered": [(0, 2, "red"), (2, 3, "blue"), (3, 4, None), (4, 6, "red"), (6, 7, "blue")],
}


def segments(layout: str) -> list[Segment]:
    return [Segment(*segment) for segment in LAYOUTS[layout]]


def double(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def by_formula(stream: Tensor, weight: Tensor, bias: Tensor, groups: Sequence[LoraRows]) -> Tensor:
    """Return `W x + bias + (scaling / keep share) B A (keep * x)` row by row."""
    rows = list(stream @ weight.T + bias)
    for group in groups:
        update = group.update
        owned = [row for start, end in group.rows.ranges for row in range(start, end)]
        for position, row in enumerate(owned):
            kept = stream[row] if group.keep is None else stream[row] * group.keep[position]
            share = 1.0 if group.keep is None else group.keep_share
            rows[row] = rows[row] + update.scaling / share * (update.b @ (update.a @ kept))
    return torch.stack(rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_equal_the_formula(layout: str, dropout: float) -> None:
    stream, weight, bias = double(TOKENS, IN, seed=1), double(OUT, IN, seed=2), double(OUT, seed=3)
    groups: list[LoraRows] = []
    for rank, rows in enumerate(route(segments(layout), TOKENS, CPU), start=1):
        update = LoraUpdate(double(rank, IN, seed=4), double(OUT, rank, seed=5), scaling=1.5)
        shape = rows.take(stream).shape
        keep = torch.rand(shape, generator=torch.Generator().manual_seed(6)) > dropout
        groups.append(LoraRows(rows, update, keep if dropout else None, 1 - dropout))
    leaves = [stream, *(t for group in groups for t in (group.update.a, group.update.b))]

    found = lora_linear(stream, weight.detach(), bias.detach(), groups)
    expected = by_formula(stream, weight.detach(), bias.detach(), groups)

    torch.testing.assert_close(found, expected)
    direction = double(TOKENS, OUT, seed=7).detach()
    for gradient, wanted in zip(
        torch.autograd.grad(found, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)
    with torch.no_grad():
        torch.testing.assert_close(lora_linear(stream, weight, bias, groups), expected)


def layer_of(routing: Routing, dropout: float = 0.0) -> LoraSlotsLinear:
    """Return a layer on which `red` and `blue` have updates of unlike rank."""
    torch.manual_seed(0)
    layer = LoraSlotsLinear(nn.Linear(IN, OUT).requires_grad_(False), routing)
    for rank, name in ((2, "red"), (3, "blue")):
        generator = torch.Generator().manual_seed(rank)
        layer.add(
            name, LoraPair(torch.randn(rank, IN), torch.randn(OUT, rank)), 0.5, dropout, generator
        )
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_side_by_side_equal_adapters_one_by_one(layout: str) -> None:
    routing = Routing()
    layer, stream = layer_of(routing), torch.randn(1, TOKENS, IN)
    routing.set(segments(layout), TOKENS, CPU)

    one_by_one = layer(stream)
    with torch.no_grad():
        side_by_side = layer(stream)

    torch.testing.assert_close(side_by_side, one_by_one)


def test_a_slot_that_changes_hands_computes_the_new_update() -> None:
    routing = Routing()
    layer, stream = layer_of(routing), torch.randn(1, TOKENS, IN)
    routing.set(segments("neighbours"), TOKENS, CPU)
    with torch.no_grad():
        before = layer(stream)
        layer.remove("red")
        layer.add("red", LoraPair(torch.zeros(2, IN), torch.zeros(OUT, 2)), scaling=0.5)
        after = layer(stream)
        plain = torch.nn.functional.linear(stream, layer.weight, layer.bias)

    assert torch.equal(after[:, :4], plain[:, :4])
    assert torch.equal(after[:, 4:], before[:, 4:])


def test_dropout_is_for_training_alone_and_keeps_the_mean() -> None:
    routing = Routing()
    layer, stream = layer_of(routing, dropout=0.5), torch.randn(1, TOKENS, IN)
    routing.set(segments("neighbours"), TOKENS, CPU)
    with torch.no_grad():
        expected = layer(stream)
        assert torch.equal(layer(stream), expected)

    draws = torch.stack([layer(stream) for _ in range(4_000)])

    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), expected, atol=0.15, rtol=0.0)
