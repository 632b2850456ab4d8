"""LoRA adapters: their weights, and the one linear layer that serves training and inference.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. An adapted linear layer computes
`y = W x + (alpha / r) B A x`, with `A [r, in]` and `B [out, r]`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from app.domain.errors import InvalidInput
from app.domain.job_spec import LoraSpec
from worker.trunk.depth import all_are_frozen, is_above
from worker.trunk.lora_function import LoraRows, add_updates, lora_linear
from worker.trunk.lora_update import LoraUpdate
from worker.trunk.products import product
from worker.trunk.routing import AdapterRows, Routing


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The update of one linear layer: `a` [r, in] and `b` [out, r]."""

    a: Tensor
    b: Tensor


@dataclass(slots=True)
class LoraAdapter:
    """An adapter: its shape, and its weights by module path (`model.layers.0.mlp.up_proj`)."""

    spec: LoraSpec
    weights: dict[str, LoraPair]

    @property
    def scaling(self) -> float:
        return self.spec.scaling


def new_adapter(
    model: PreTrainedModel, spec: LoraSpec, seed: int, frozen_layers: int = 0
) -> LoraAdapter:
    """Return a fresh float32 adapter that does not change the model yet.

    As in PEFT, `A` is uniform in ±1/sqrt(in) (Kaiming with a = sqrt 5) and `B` is zero. The
    weights are drawn on the CPU, so that a seed means the same on every device.

    Args:
        frozen_layers: how many of the lowest blocks get no update.

    Raises:
        InvalidInput: the model has no linear layer of a target's name, or none is left.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, LoraPair] = {}
    for path, module in adaptable_modules(model, spec.target_modules):
        if not is_above(path, frozen_layers):
            continue
        out_features, in_features = module.weight.shape
        bound = in_features**-0.5
        a = torch.empty(spec.r, in_features).uniform_(-bound, bound, generator=generator)
        device = module.weight.device
        weights[path] = LoraPair(a.to(device), torch.zeros(out_features, spec.r, device=device))
    if not weights:
        raise all_are_frozen(frozen_layers)
    return LoraAdapter(spec, weights)


def adaptable_modules(
    model: PreTrainedModel, targets: Sequence[str]
) -> Iterator[tuple[str, "nn.Linear | LoraSlotsLinear"]]:
    """Yield each linear layer whose last name is among `targets`, with its path.

    Raises:
        InvalidInput: the model has no linear layer of a target's name.
    """
    missing = set(targets)
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in targets and isinstance(module, nn.Linear | LoraSlotsLinear):
            missing.discard(name)
            yield path, module
    if missing:
        names = ", ".join(sorted(missing))
        raise InvalidInput(f"the base model has no linear layer named {names}")


@dataclass(frozen=True, slots=True)
class _Slot:
    update: LoraUpdate
    dropout: float
    generator: torch.Generator | None


class LoraSlotsLinear(nn.Module):
    """One frozen linear layer and the updates of any number of adapters.

    Rows of segments without an adapter get exactly the base layer's result. Adapters in one
    batch may differ in rank, and each layer holds only those that target it.

    Args:
        base: the layer to wrap; its parameters are shared, not copied.
        routing: which rows go through which adapter; renewed by the trunk for each batch.
    """

    def __init__(self, base: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.routing = routing
        self._slots: dict[str, _Slot] = {}

    def add(
        self,
        name: str,
        pair: LoraPair,
        scaling: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Give an adapter a slot.

        Raises:
            InvalidInput: the pair does not fit this layer.
        """
        rank = pair.a.shape[0]
        if pair.a.shape != (rank, self.in_features) or pair.b.shape != (self.out_features, rank):
            raise InvalidInput("the adapter was made for a base model of another shape")
        self._slots[name] = _Slot(LoraUpdate(pair.a, pair.b, scaling), dropout, generator)

    def remove(self, name: str) -> None:
        """Free an adapter's slot; one that is not there is not an error."""
        self._slots.pop(name, None)

    def update_of(self, name: str) -> LoraUpdate:
        """Return the update of an adapter that has a slot."""
        return self._slots[name].update

    def forward(self, stream: Tensor) -> Tensor:
        """Return [..., out] for `stream` [..., in]; the leading sizes multiply to the tokens."""
        flat = stream.reshape(-1, self.in_features)
        if torch.is_grad_enabled():
            groups: list[LoraRows] = []
            for rows in self._routed():
                slot = self._slots[rows.adapter]
                keep = _dropout_mask(slot, rows.take(flat))
                groups.append(LoraRows(rows, slot.update, keep, 1.0 - slot.dropout))
            if not groups:
                return linear(stream, self.weight, self.bias)
            output = lora_linear(flat, self.weight, self.bias, groups)
        else:
            output = product(flat, self.weight, self.bias)
            add_updates_of((self,), output, flat)
        return output.view(*stream.shape[:-1], self.out_features)

    def add_to_rows(self, output: Tensor, rows: Tensor) -> None:
        """Add what adapters change that are computed one by one; see `add_updates_of`."""
        if routed := self._routed():
            add_updates(
                output, rows, [LoraRows(one, self._slots[one.adapter].update) for one in routed]
            )

    def _routed(self) -> list[AdapterRows]:
        return [rows for rows in self.routing.rows if rows.adapter in self._slots]


def add_updates_of(
    layers: Sequence[nn.Linear | LoraSlotsLinear], output: Tensor, rows: Tensor
) -> None:
    """Add what the adapters change in layers of one input, in place and without gradients.

    Args:
        layers: in order; plain ones stay as they are.
        output: what they make of `rows`, side by side, [tokens, sum of out].
        rows: [tokens, in].
    """
    adapted: list[tuple[LoraSlotsLinear, int]] = []
    end = 0
    for layer in layers:
        if isinstance(layer, LoraSlotsLinear):
            adapted.append((layer, end))
        end += layer.out_features
    if not adapted:
        return
    # All layers of a trunk share one.
    routing = adapted[0][0].routing
    for stacked in routing.stacked:
        inner, outer = stacked.take(rows), stacked.take(output)
        for layer, start in adapted:
            if (weights := stacked.layers.get(layer)) is not None:
                update = torch.bmm(torch.bmm(inner, weights[0]), weights[1])
                outer.narrow(2, start, layer.out_features).add_(update)
    if routing.rows:
        for layer, start in adapted:
            layer.add_to_rows(output.narrow(1, start, layer.out_features), rows)


def _dropout_mask(slot: _Slot, rows: Tensor) -> Tensor | None:
    """Draw [rows, in] bool from the adapter's own generator: its batch mates change nothing."""
    if slot.dropout == 0.0 or slot.generator is None:
        return None
    keep = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    return keep.bernoulli_(1.0 - slot.dropout, generator=slot.generator)
