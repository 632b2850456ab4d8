"""Holding weights near where a run started, so that what the model knew is not forgotten."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from worker.tasks import Example
from worker.training.optimizer import Optimizer

MAX_EXAMPLES = 200


class WeightAnchor:
    """A penalty of `strength / 2 * importance * (weight - start)^2` on every trained weight.

    Without importances it is L2-SP (Li et al. 2018, https://arxiv.org/abs/1802.01483), with those
    of `fisher_importance` elastic weight consolidation (Kirkpatrick et al. 2017,
    https://arxiv.org/abs/1612.00796).

    Args:
        weights: as they are at the start, by name.
        importance: of each weight, by the same names; None: all alike.
    """

    def __init__(
        self,
        weights: Iterable[tuple[str, nn.Parameter]],
        strength: float,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._weights = [(name, weight, weight.detach().clone()) for name, weight in weights]
        self._strength = strength
        self._importance = importance

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the penalty's gradient to that of each weight."""
        for name, weight, start in self._weights:
            pull = self._strength * (weight - start)
            if self._importance is not None:
                pull *= self._importance[name]
            weight.grad = pull if weight.grad is None else weight.grad.add_(pull)


class AnchoredOptimizer:
    """See `session.Optimizer`: every step is also pulled back to where the weights are now."""

    def __init__(self, optimizer: Optimizer, strength: float) -> None:
        self._optimizer = optimizer
        self._anchor = WeightAnchor(optimizer.weights(), strength)

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self._optimizer.weights()

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        self._anchor.add_gradients()
        return self._optimizer.step(learning_rate, max_grad_norm)

    def state_tensors(self) -> dict[str, Tensor]:
        return self._optimizer.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._optimizer.load_state_tensors(tensors)


def fisher_importance(
    weights: Sequence[tuple[str, nn.Parameter]],
    examples: Sequence[Example],
    loss_of: Callable[[Example], Tensor],
) -> dict[str, Tensor]:
    """Return how much the loss on earlier examples depends on each weight.

    The diagonal of the empirical Fisher information: the mean of squared gradients, one example at
    a time, over its own mean, so that a strength means about the same with and without it.

    Args:
        examples: earlier ones; at most `MAX_EXAMPLES` of them are looked at, evenly spread.
        loss_of: the loss of one example, with gradient.
    """
    sums = {name: torch.zeros_like(weight) for name, weight in weights}
    spread = examples[:: max(1, len(examples) // MAX_EXAMPLES)][:MAX_EXAMPLES]
    for example in spread:
        gradients = torch.autograd.grad(
            loss_of(example), [weight for _, weight in weights], allow_unused=True
        )
        for (name, _), gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.detach() ** 2
    total = sum(float(one.sum()) for one in sums.values())
    mean = total / sum(one.numel() for one in sums.values())
    return {name: one / max(mean, 1e-30) for name, one in sums.items()}
