"""Log-probabilities of tokens under a large vocabulary, without ever holding all logits.

Losses over whole answers (preferences, policies) are functions of these numbers. As with the
cross-entropy, the gradient is worked out while a chunk's logits exist, after Wijmans et al. 2024,
"Cut Your Losses in Large-Vocabulary Language Models", https://arxiv.org/abs/2411.09009.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True)
class TokenLogProbabilities:
    """What the model thinks of the token that follows each row.

    Attributes:
        values: [rows] float32, the target's log-probability; carries the gradient.
        is_correct: [rows] bool, the target is the most likely token.
        entropy: [rows] float32, of the whole distribution, in nats; no gradient.
    """

    values: Tensor
    is_correct: Tensor
    entropy: Tensor


def token_log_probabilities(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    chunk_rows: int = _CHUNK_ROWS,
) -> TokenLogProbabilities:
    """Return `log_softmax(hidden @ head_weight.T / temperature)` at the targets.

    The softmax is taken in float32 whatever the format of `hidden`, and in float64 if that is
    float64. What is kept for the backward pass is as large as `hidden`, not as the logits.

    Args:
        hidden: [rows, hidden], only rows whose next token matters.
        head_weight: [vocab, hidden], frozen.
        targets: [rows] int64.
        temperature: what the logits are divided by; that of the sampling, for sampled answers.
        chunk_rows: rows whose logits exist at a time.
    """
    values, is_correct, entropy = _TokenLogProbabilities.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, targets, temperature, chunk_rows
    )
    return TokenLogProbabilities(values, is_correct, entropy)


def sum_by_segment(values: Tensor, segment_ids: Tensor, count: int) -> Tensor:
    """Return the sum of each segment's rows, [count]; 0 where a segment has none.

    Args:
        values: [rows].
        segment_ids: [rows] int64, from 0 to `count - 1`, in any order.
        count: how many segments there are.
    """
    return values.new_zeros(count).index_add(0, segment_ids, values)


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        precision = torch.promote_types(hidden.dtype, torch.float32)
        values = torch.empty(targets.shape, dtype=precision, device=hidden.device)
        is_correct = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device)
        entropy = torch.empty_like(values)
        # What one unit of a row's log-probability changes in its hidden state.
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        buffer = hidden.new_empty(min(chunk_rows, hidden.shape[0]), head_weight.shape[0])
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            target = targets[rows, None]
            chunk = buffer[: target.shape[0]]
            logits = torch.mm(hidden[rows], head_weight.t(), out=chunk).to(precision)
            logits.mul_(1 / temperature)  # [chunk, vocab]
            largest, likeliest = logits.max(dim=1, keepdim=True)
            is_correct[rows] = (likeliest == target).squeeze(1)
            logits.sub_(largest)
            exponents = logits.exp()
            norm = exponents.sum(dim=1, keepdim=True)
            log_norm = norm.log().squeeze(1)
            values[rows] = logits.gather(1, target).squeeze(1) - log_norm
            entropy[rows] = log_norm - torch.linalg.vecdot(exponents, logits) / norm.squeeze(1)
            if slopes is not None:
                # From here on `exponents` is overwritten: minus softmax, target minus softmax.
                grad_logits = exponents.mul_(-1 / (norm * temperature))
                # Indexed, since CUDA has no deterministic `scatter_add_` of two dimensions.
                position = torch.arange(target.shape[0], device=hidden.device)
                grad_logits[position, targets[rows]] += 1 / temperature
                slopes[rows] = grad_logits.to(head_weight.dtype) @ head_weight
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(is_correct, entropy)
        return values, is_correct, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_values: Tensor, _is_correct: Tensor, _entropy: Tensor
    ) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grad_values[:, None]).to(slopes.dtype), None, None, None, None
