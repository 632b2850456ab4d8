"""Changing what a text model sees while it learns: noise, and small changes that hurt the most.

The changes are added to the output of the input embeddings, so they reach what lies above them
whether the embeddings themselves are trained or not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.errors import TrainingFailed
from app.domain.job_spec import Adversarial

# Loss of a batch as the model computes it at that moment.
ComputeLoss = Callable[[], Tensor]


class EmbeddingChanges:
    """What is added to the embeddings of one model.

    Args:
        model: has input embeddings whose output is [examples, tokens, width].
        noise_alpha: of NEFTune (Jain et al. 2023, https://arxiv.org/abs/2310.05914): uniform noise
            of up to alpha / sqrt(tokens x width); 0 adds none.
        adversarial: see `accumulate`; None: there is no adversary.
    """

    def __init__(
        self, model: PreTrainedModel, noise_alpha: float, adversarial: Adversarial | None
    ) -> None:
        self._embeddings: nn.Module = model.get_input_embeddings()
        self._noise_alpha = noise_alpha
        self._adversarial = adversarial
        self._added: Tensor | None = None
        self._shape: torch.Size | None = None

    def accumulate(self, compute_loss: ComputeLoss) -> Tensor:
        """Accumulate the gradients of a batch and return its loss, [] without gradient.

        With an adversary, those of the batch as it is seen under attack are added:

        - `fgm`: one step of `epsilon` along the gradient (Miyato et al. 2017,
          https://arxiv.org/abs/1605.07725), by the L2 norm of each example.
        - `pgd`: `steps` steps, each cut back to within `epsilon` (Madry et al. 2018,
          https://arxiv.org/abs/1706.06083).
        """
        with self._hooked():
            if self._adversarial is None:
                loss = compute_loss()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()
            return self._accumulate_attacked(compute_loss, self._adversarial)

    def _accumulate_attacked(self, compute_loss: ComputeLoss, adversary: Adversarial) -> Tensor:
        steps = adversary.steps if adversary.type == "pgd" else 1
        reach = adversary.epsilon if steps == 1 else 1.5 * adversary.epsilon / steps
        delta = self._probe(compute_loss)
        clean = self._loss_with(delta, compute_loss)
        clean.backward()  # type: ignore[no-untyped-call]
        slope = delta.grad
        assert slope is not None
        for step in range(steps):
            delta = _within(delta.detach() + reach * _unit(slope), adversary.epsilon)
            if step < steps - 1:
                delta.requires_grad_()
                (slope,) = torch.autograd.grad(self._loss_with(delta, compute_loss), delta)
        self._loss_with(delta, compute_loss).backward()  # type: ignore[no-untyped-call]
        return clean.detach()

    @torch.no_grad()
    def _probe(self, compute_loss: ComputeLoss) -> Tensor:
        """Return zeros of the shape that this batch's embeddings have."""
        self._added = None
        compute_loss()
        assert self._shape is not None
        device = next(self._embeddings.parameters()).device
        return torch.zeros(self._shape, device=device).requires_grad_()

    def _loss_with(self, delta: Tensor, compute_loss: ComputeLoss) -> Tensor:
        self._added = delta
        return compute_loss()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handle = self._embeddings.register_forward_hook(self._change)
        try:
            yield
        finally:
            handle.remove()
            self._added = None

    def _change(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._shape = output.shape
        if self._added is not None:
            if self._added.shape != output.shape:
                raise TrainingFailed(
                    "a record is too long to be computed in one piece, as adversarial training "
                    "has to; a smaller max_length_tokens helps",
                    code="out_of_memory",
                    param="tunesmith.training.max_length_tokens",
                )
            output = output + self._added.to(output.dtype)
        if self._noise_alpha > 0 and torch.is_grad_enabled():
            bound = self._noise_alpha / (output.shape[1] * output.shape[2]) ** 0.5
            output = output + torch.empty_like(output).uniform_(-bound, bound)
        return output


def _unit(slope: Tensor) -> Tensor:
    """Return [examples, tokens, width] of norm 1 for each example."""
    unit: Tensor = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    return unit


def _within(delta: Tensor, epsilon: float) -> Tensor:
    """Return each example cut back to the norm `epsilon`."""
    norms = delta.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    cut: Tensor = delta * (epsilon / norms).clamp(max=1.0)
    return cut
