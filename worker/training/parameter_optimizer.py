"""AdamW over the weights of a tuning, in groups of their own rates."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from worker.tuning import Tuning, named_weights


class ParameterOptimizer:
    """See `optimizer.Optimizer`.

    Args:
        tuning: whose weights are updated.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, tuning: Tuning, weight_decay: float) -> None:
        self._tuning = tuning
        self._groups = tuning.groups()
        self._named = dict(named_weights(self._groups))
        self._updates = 0
        self._adamw = torch.optim.AdamW(
            [{"params": [weight for _, weight in group.weights]} for group in self._groups],
            weight_decay=weight_decay,
            fused=True,
        )

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        return list(self._named.items())

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        grad_norm = float(nn.utils.clip_grad_norm_(self._named.values(), max_grad_norm))
        if math.isfinite(grad_norm):
            for own, group in zip(self._adamw.param_groups, self._groups, strict=True):
                own["lr"] = learning_rate * group.rate
            self._adamw.step()
            self._updates += 1
            self._tuning.after_update(self._updates)
        self._adamw.zero_grad(set_to_none=True)
        return grad_norm

    def state_tensors(self) -> dict[str, Tensor]:
        own = {
            f"{kind}:{name}": tensor
            for name, weight in self._named.items()
            for kind, tensor in self._adamw.state.get(weight, {}).items()
        }
        return {"updates": torch.tensor(self._updates), **own}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._updates = int(tensors["updates"])
        for key, tensor in tensors.items():
            kind, colon, name = key.partition(":")
            if colon:
                weight = self._named[name]
                self._adamw.state[weight][kind] = tensor.to(weight.device, copy=True)
