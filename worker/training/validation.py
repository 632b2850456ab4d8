"""The loss of a session's adapter on a whole dataset."""

from collections.abc import Callable

import torch

from worker.training.batches import micro_batches
from worker.training.metrics import ValidationMetrics
from worker.training.records import EncodedDataset
from worker.training.session import Session
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


@torch.no_grad()
def validate(
    trunk: Trunk,
    session: Session,
    dataset: EncodedDataset,
    token_budget: int,
    is_interrupted: Callable[[], bool],
) -> ValidationMetrics | None:
    """Return the mean loss and accuracy over all learnt tokens; None when interrupted.

    Args:
        trunk: with the session's adapter attached; dropout is off, since no gradient is computed.
        session: its state is left alone.
        dataset: what to measure on.
        token_budget: tokens in one pass, unless a single record is longer.
        is_interrupted: asked before each pass.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=trunk.device)
    weight_sum = 0.0
    for part in micro_batches(dataset, range(dataset.num_records), token_budget):
        if is_interrupted():
            return None
        batch = pack([SequenceRows(ids, session.name) for ids in part.sequences], trunk.device)
        hidden = trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))
        weights = part.weights.to(trunk.device)
        found = session.method.loss(
            hidden, trunk.head_weight, part.targets.to(trunk.device), weights
        )
        sums += torch.stack([found.total, found.is_correct.float() @ weights])
        weight_sum += float(part.weights.sum())
    loss, correct = sums.tolist()
    return ValidationMetrics(session.step, loss / weight_sum, correct / weight_sum)
