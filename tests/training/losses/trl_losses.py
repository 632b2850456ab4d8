"""Losses over preferences as TRL's trainers compute them, from padded batches to a number."""

from typing import Any

from torch import Tensor

from tests.training.losses.trl_trainers import (
    DPOTrainer,
    KTOTrainer,
    ORPOTrainer,
    Padded,
    trainer,
)


def dpo_loss(
    model: Any, reference: Any, batch: Padded, loss_type: str, beta: float
) -> tuple[Tensor, Any]:
    """Return the loss of chosen and then rejected answers, and the trainer with its metrics."""
    made = trainer(
        DPOTrainer,
        model=model,
        ref_model=reference,
        beta=beta,
        label_smoothing=0.0,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=False,
        use_weighting=False,
    )
    return made._compute_loss(model, _inputs(batch), return_outputs=False), made


def orpo_loss(model: Any, chosen: Padded, rejected: Padded, beta: float) -> tuple[Tensor, Any]:
    """Return the loss of pairs, and its metrics."""
    made = trainer(ORPOTrainer, beta=beta, padding_value=0)
    found: tuple[Tensor, Any] = made.get_batch_loss_metrics(model, sides(chosen, rejected))
    return found


def kto_loss(
    model: Any, reference: Any, batch: Padded, mismatch: Padded, label: Tensor, **options: float
) -> tuple[Tensor, Any]:
    """Return the loss of single answers, and the trainer with its metrics.

    Args:
        mismatch: each prompt with the answer to another.
        label: [sequences], which answers are wanted.
        options: `beta`, `desirable_weight` and `undesirable_weight`.
    """
    made = trainer(
        KTOTrainer,
        model=model,
        ref_model=reference,
        calculate_KL=True,
        loss_type="kto",
        precompute_ref_logps=False,
        **options,
    )
    of_mismatch = {f"KL_{name}": tensor for name, tensor in _inputs(mismatch).items()}
    inputs = {**_inputs(batch), **of_mismatch, "label": label}
    return made._compute_loss(model, inputs, return_outputs=False), made


def sides(chosen: Padded, rejected: Padded) -> dict[str, Tensor]:
    """Return pairs as the collator of ORPO and CPO makes them."""
    return {
        f"{side}_{name}": tensor
        for side, batch in (("chosen", chosen), ("rejected", rejected))
        for name, tensor in (
            ("input_ids", batch.input_ids),
            ("attention_mask", batch.attention_mask),
            ("labels", batch.labels),
        )
    }


def halves(batch: Padded) -> tuple[Padded, Padded]:
    """Return the chosen answers of a batch, and the rejected ones."""
    half = len(batch.input_ids) // 2
    first, second = (
        Padded(batch.input_ids[rows], batch.attention_mask[rows], batch.completion_mask[rows])
        for rows in (slice(half), slice(half, None))
    )
    return first, second


def _inputs(batch: Padded) -> dict[str, Tensor]:
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "completion_mask": batch.completion_mask,
    }
