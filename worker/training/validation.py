"""The loss of a session's adapter on a whole dataset."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.training.batches import micro_batches
from worker.training.metrics import ValidationMetrics
from worker.training.records import EncodedDataset
from worker.training.session import Session
from worker.training.step import add_up, as_floats, reference_rows, rows_to_learn
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


@torch.no_grad()
def validate(
    trunk: Trunk,
    session: Session,
    dataset: EncodedDataset,
    records: Sequence[int],
    token_budget: int,
    is_interrupted: Callable[[], bool],
) -> ValidationMetrics | None:
    """Return the mean loss and metrics over all that can be learnt; None when interrupted.

    Args:
        trunk: with the session's adapter attached; dropout is off, since no gradient is computed.
        session: its state is left alone.
        dataset: what to measure on.
        records: which of its records.
        token_budget: tokens in one pass, unless a single record is longer.
        is_interrupted: asked before each pass.
    """
    method = session.method
    sums: dict[str, Tensor] = {}
    normaliser = 0.0
    for part in micro_batches(dataset, records, token_budget):
        if is_interrupted():
            return None
        batch = pack([SequenceRows(ids, session.name) for ids in part.sequences], trunk.device)
        hidden = trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))
        reference = reference_rows(trunk, part) if method.needs_reference else None
        add_up(sums, method.loss(rows_to_learn(trunk, part, hidden, reference), 1.0))
        normaliser += method.normaliser([part])
    metrics = {name: value / normaliser for name, value in as_floats(sums).items()}
    return ValidationMetrics(session.step, metrics.pop("loss"), metrics)
