"""The chunked cross-entropy against the plain one."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from worker.training.losses.cross_entropy import chunked_cross_entropy

ROWS, HIDDEN, VOCAB = 37, 16, 301


@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 256])
def test_equals_the_plain_loss_and_gradient(chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).requires_grad_()
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator)

    logits = hidden @ head.T
    nll = cross_entropy(logits, targets, reduction="none")
    (nll @ weights).backward()  # type: ignore[no-untyped-call]
    expected_gradient = hidden.grad
    assert expected_gradient is not None
    hidden.grad = None
    found = chunked_cross_entropy(hidden, head, targets, weights, chunk_rows=chunk_rows)
    found.total.backward()  # type: ignore[no-untyped-call]

    assert hidden.grad is not None
    torch.testing.assert_close(found.total, nll @ weights, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(found.nll, nll.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad, expected_gradient, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.is_correct, logits.argmax(1) == targets)


@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
@pytest.mark.parametrize("chunk_rows", [8, 256])
def test_smooths_labels_as_torch_does(label_smoothing: float, chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).requires_grad_()
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator)

    losses = cross_entropy(
        hidden @ head.T, targets, reduction="none", label_smoothing=label_smoothing
    )
    expected = losses @ weights
    (expected_gradient,) = torch.autograd.grad(expected, hidden)
    found = chunked_cross_entropy(
        hidden, head, targets, weights, label_smoothing=label_smoothing, chunk_rows=chunk_rows
    )
    (gradient,) = torch.autograd.grad(found.total, hidden)

    torch.testing.assert_close(found.total, expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)
    # What is reported as likelihood stays one: perplexities do not depend on the smoothing.
    plain = cross_entropy(hidden.detach() @ head.T, targets, reduction="none")
    torch.testing.assert_close(found.nll, plain, atol=1e-5, rtol=1e-5)


def test_scales_with_the_gradient_it_is_given() -> None:
    hidden = torch.randn(3, HIDDEN).requires_grad_()
    head = torch.randn(VOCAB, HIDDEN)
    targets, weights = torch.tensor([0, 1, 2]), torch.ones(3)

    chunked_cross_entropy(hidden, head, targets, weights).total.backward()  # type: ignore[no-untyped-call]
    once = hidden.grad
    assert once is not None
    hidden.grad = None
    (3 * chunked_cross_entropy(hidden, head, targets, weights).total).backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(hidden.grad, 3 * once)


def test_survives_large_logits_in_half_precision() -> None:
    hidden = (torch.randn(4, HIDDEN) * 50).bfloat16().requires_grad_()
    head = (torch.randn(VOCAB, HIDDEN) * 50).bfloat16()

    found = chunked_cross_entropy(hidden, head, torch.tensor([0, 1, 2, 3]), torch.ones(4))
    found.total.backward()  # type: ignore[no-untyped-call]

    assert found.total.dtype == torch.float32
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_needs_no_gradient_for_validation() -> None:
    with torch.no_grad():
        found = chunked_cross_entropy(
            torch.randn(2, HIDDEN), torch.randn(VOCAB, HIDDEN), torch.tensor([0, 1]), torch.ones(2)
        )

    assert not found.total.requires_grad
