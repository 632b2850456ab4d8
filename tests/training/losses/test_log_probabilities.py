"""The chunked log-probabilities against plain ones, and against TRL's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.losses.trl_trainers import ChunkedLogProbFunction
from worker.training.losses.log_probabilities import sum_by_segment, token_log_probabilities

ROWS, HIDDEN, VOCAB = 37, 16, 301
# Float32 has seven digits; the sums here have up to 301 terms.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return (hidden, head, targets)."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    head = torch.randn(VOCAB, HIDDEN, generator=generator) / HIDDEN**0.5
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(dtype), targets


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 256])
def test_equals_log_softmax_and_its_gradient(chunk_rows: int, temperature: float) -> None:
    hidden, head, targets = tensors()
    row_weights = torch.linspace(-1, 2, ROWS)

    log_softmax = (hidden @ head.T / temperature).log_softmax(dim=1)
    expected = log_softmax[torch.arange(ROWS), targets]
    (expected_gradient,) = torch.autograd.grad(expected @ row_weights, hidden)
    found = token_log_probabilities(hidden, head, targets, temperature, chunk_rows=chunk_rows)
    (gradient,) = torch.autograd.grad(found.values @ row_weights, hidden)

    entropy = -(log_softmax.exp() * log_softmax).sum(dim=1)
    torch.testing.assert_close(found.values, expected, **TOLERANCE)
    torch.testing.assert_close(found.entropy, entropy.detach(), **TOLERANCE)
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)
    assert torch.equal(found.is_correct, log_softmax.argmax(dim=1) == targets)
    assert not found.entropy.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_kernel_of_trl(temperature: float) -> None:
    hidden, head, targets = tensors()
    targets[::3] = (hidden @ head.T).argmax(dim=1)[::3]

    values, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
        hidden, head, None, targets, temperature, 128
    )
    (expected_gradient,) = torch.autograd.grad(values.sum(), hidden)
    found = token_log_probabilities(hidden, head, targets, temperature, chunk_rows=8)
    (gradient,) = torch.autograd.grad(found.values.sum(), hidden)

    torch.testing.assert_close(found.values, values, **TOLERANCE)
    torch.testing.assert_close(found.entropy, entropy.detach(), **TOLERANCE)
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)
    assert torch.equal(found.is_correct, is_top1)
    assert found.is_correct[::3].all()


def test_its_gradient_is_that_of_its_values() -> None:
    hidden, head, targets = tensors(torch.float64)

    def values(hidden: Tensor) -> Tensor:
        return token_log_probabilities(hidden, head, targets[:5], 0.7, chunk_rows=2).values

    assert torch.autograd.gradcheck(values, hidden[:5].detach().requires_grad_())


def test_computes_half_precision_in_float32() -> None:
    hidden, head, targets = tensors(torch.bfloat16)
    large = (hidden.detach() * 100).requires_grad_()

    found = token_log_probabilities(large, head, targets)
    found.values.sum().backward()  # type: ignore[no-untyped-call]

    expected = (large.detach() @ head.T).float().log_softmax(dim=1)
    assert found.values.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.values, expected[torch.arange(ROWS), targets], **TOLERANCE)
    assert large.grad is not None
    assert large.grad.dtype == torch.bfloat16
    assert torch.isfinite(large.grad).all()


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_never_holds_all_logits() -> None:
    hidden, head, targets = tensors()

    with LargestTensor() as largest:
        found = token_log_probabilities(hidden, head, targets, chunk_rows=4)
        found.values.sum().backward()  # type: ignore[no-untyped-call]

    # The head itself is larger than four rows of logits.
    assert largest.elements == head.numel() < ROWS * VOCAB


def test_keeps_nothing_without_gradients() -> None:
    hidden, head, targets = tensors()

    with torch.no_grad():
        assert not token_log_probabilities(hidden, head, targets).values.requires_grad


def test_sums_the_rows_of_each_segment() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0]).requires_grad_()

    sums = sum_by_segment(values, torch.tensor([2, 0, 2, 0]), 4)
    (gradient,) = torch.autograd.grad(sums[2] * 100 + sums[0], values)

    assert sums.tolist() == [10.0, 0.0, 5.0, 0.0]
    assert gradient.tolist() == [100.0, 1.0, 100.0, 1.0]
