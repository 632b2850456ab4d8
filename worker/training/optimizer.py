"""AdamW over all weights of one adapter at once.

Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization",
https://arxiv.org/abs/1711.05101.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.trunk.lora import LoraAdapter, LoraPair


class Optimizer(Protocol):
    """Updates the weights of a run from their accumulated gradients."""

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return what is updated, by name."""

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Update, clear the gradients, return their norm; nothing changes if it is not finite."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what `load_state_tensors` needs."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved state."""


class AdapterOptimizer:
    """Holds an adapter's weights and gradients in two flat tensors, and steps over them.

    An adapter is hundreds of small matrices. Flat, the gradient norm is one operation, the step
    one more, and the state two tensors. The layout follows the sorted module paths, so that an
    adapter read from disk has the layout of the one that was written.

    Args:
        adapter: its pairs are replaced by views of the flat tensor that collect gradients.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, adapter: LoraAdapter, weight_decay: float) -> None:
        pairs = sorted(adapter.weights.items())
        self._flat = nn.Parameter(torch.cat([t.flatten() for _, p in pairs for t in (p.a, p.b)]))
        self._flat.grad = torch.zeros_like(self._flat)
        start = 0
        for path, pair in pairs:
            a = self._view(start, pair.a.shape)
            b = self._view(start + a.numel(), pair.b.shape)
            adapter.weights[path] = LoraPair(a, b)
            start += a.numel() + b.numel()
        self._adamw = torch.optim.AdamW([self._flat], weight_decay=weight_decay, fused=True)

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        return [("adapter", self._flat)]

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Update the weights, clear the gradients and return their norm before clipping.

        Where the norm is not finite, the weights stay as they are.
        """
        grad_norm = float(nn.utils.clip_grad_norm_([self._flat], max_grad_norm))
        if math.isfinite(grad_norm):
            self._adamw.param_groups[0]["lr"] = learning_rate
            self._adamw.step()
        assert self._flat.grad is not None
        self._flat.grad.zero_()
        return grad_norm

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what `load_state_tensors` needs; empty before the first step."""
        return dict(self._adamw.state.get(self._flat, {}))

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved state."""
        groups = self._adamw.state_dict()["param_groups"]
        state = {0: dict(tensors)} if tensors else {}
        self._adamw.load_state_dict({"state": state, "param_groups": groups})

    def _view(self, start: int, shape: torch.Size) -> Tensor:
        rows = slice(start, start + shape.numel())
        view = self._flat.detach()[rows].view(shape).requires_grad_()
        assert self._flat.grad is not None
        # Autograd adds into a gradient that exists already, and so into the flat one.
        view.grad = self._flat.grad[rows].view(shape)
        return view
