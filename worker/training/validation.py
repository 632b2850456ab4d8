"""The loss of a session's adapter on a whole dataset."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.training.batches import RecordBatch
from worker.training.metrics import ValidationMetrics
from worker.training.records import EncodedDataset
from worker.training.session import Session
from worker.training.step import Observer, add_up, as_floats, observe
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
    """Return the loss and metrics of all records as of one batch; None when interrupted.

    Args:
        trunk: with the session's adapter attached; dropout is off, since no gradient is computed.
        session: its state is left alone.
        dataset: what to measure on.
        records: which of its records.
        token_budget: tokens in one pass, unless a single record is longer.
        is_interrupted: asked before each pass.
    """

    def before_pass() -> None:
        if is_interrupted():
            raise _Interrupted

    batch = RecordBatch(dataset, records, token_budget, session.method.needs_prompts)
    sums: dict[str, Tensor] = {}
    try:
        survey = session.method.survey(batch, Observer(trunk, session, token_budget, before_pass))
        for part in batch:
            before_pass()
            add_up(sums, session.method.loss(observe(trunk, session, part), survey))
    except _Interrupted:
        return None
    metrics = as_floats(sums)
    return ValidationMetrics(session.step, metrics.pop("loss"), metrics)


class _Interrupted(Exception):
    """A command came in between."""
