"""PiSSA: an update of the principal singular components, which starts from them.

Source: Meng et al. 2024, https://arxiv.org/abs/2404.02948. There the components `B0 A0` are taken
out of the frozen weight and put into the update. Here the weight stays whole and the update is
`B A - B0 A0`, of twice the rank with one half fixed: the same function and the same gradients, the
base model is there for whoever asks for it, and what is saved is an ordinary LoRA adapter.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn


class PrincipalStart:
    """See `extras.Extra`. The second half of each pair is fixed."""

    def __init__(self, model: peft.PeftModel) -> None:
        self._pairs = list(_pairs(model))
        self._fixed: list[tuple[Tensor, Tensor]] = []
        for layer, a, b in self._pairs:
            rank = a.shape[0] // 2
            _start(layer, a, b, rank)
            hook_a, hook_b = (
                partial(_without, rank=rank, dim=0),
                partial(_without, rank=rank, dim=1),
            )
            a.register_hook(hook_a)  # type: ignore[no-untyped-call]
            b.register_hook(hook_b)  # type: ignore[no-untyped-call]
        self.weights_replaced()

    def before_update(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Undo what weight decay did to the fixed half."""
        for (_, a, b), (fixed_a, fixed_b) in zip(self._pairs, self._fixed, strict=True):
            rank = a.shape[0] // 2
            a[rank:] = fixed_a
            b[:, rank:] = fixed_b

    def fit(self, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return tensors

    def weights_replaced(self) -> None:
        self._fixed = [
            (a.detach()[a.shape[0] // 2 :].clone(), b.detach()[:, b.shape[1] // 2 :].clone())
            for _, a, b in self._pairs
        ]

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        return


def _pairs(model: nn.Module) -> Iterator[tuple[Any, nn.Parameter, nn.Parameter]]:
    """Yield each adapted layer with its matrices [2r, in, ...] and [out, 2r, ...]."""
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            anything: Any = layer
            yield anything, anything.lora_A["default"].weight, anything.lora_B["default"].weight


@torch.no_grad()
def _start(layer: Any, a: nn.Parameter, b: nn.Parameter, rank: int) -> None:
    weight = layer.get_base_layer().weight.detach().float().flatten(1)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    share = (values[:rank] / layer.scaling["default"]).sqrt()
    # A layer can have fewer components than the rank; what is beyond begins as zero.
    own_a, own_b = torch.zeros_like(a[:rank]), torch.zeros_like(b[:, :rank])
    found = len(share)
    own_a[:found] = (share[:, None] * right[:rank]).view(found, *a.shape[1:])
    own_b[:, :found] = (left[:, :rank] * share).view(-1, found, *b.shape[2:])
    a.copy_(torch.cat([own_a, own_a]))
    b.copy_(torch.cat([own_b, -own_b], dim=1))


def _without(grad: Tensor, rank: int, dim: int) -> Tensor:
    """Return a gradient in which the second half is zero."""
    kept = grad.clone()
    kept.narrow(dim, rank, rank).zero_()
    return kept
