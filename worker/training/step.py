"""One step on a trunk: the gradients of one or more sessions' next batches, in shared passes."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from worker.training.batches import MicroBatch
from worker.training.methods import LabelRows, MethodLoss
from worker.training.session import BatchLoss, Session
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


def trunk_step(trunk: Trunk, sessions: Sequence[Session], token_budget: int) -> list[BatchLoss]:
    """Accumulate the gradients of each session's next batch, and return what each came to.

    What a batch's sums are divided by is decided by its method over all its records, however they
    are packed. A session is packed alike alone and in company, so its dropout draws and the order
    of its sums are the same; products over more rows may still differ in the last bits.

    Args:
        trunk: with every session's adapter attached under the session's name.
        sessions: of which none has accumulated gradients.
        token_budget: tokens in one pass, unless a single record is longer.
    """
    batches = [session.next_batch(token_budget) for session in sessions]
    normalisers = [
        session.method.normaliser(batch) for session, batch in zip(sessions, batches, strict=True)
    ]
    sums: list[dict[str, Tensor]] = [{} for _ in sessions]
    for together in _passes(batches, token_budget):
        sequences = [
            SequenceRows(sequence, sessions[index].name)
            for index, part in together
            for sequence in part.sequences
        ]
        hidden = trunk.hidden(pack(sequences, trunk.device))
        losses: list[Tensor] = []
        start = 0
        for index, part in together:
            method = sessions[index].method
            label_rows = (part.label_rows + start).to(trunk.device)
            reference = reference_rows(trunk, part) if method.needs_reference else None
            rows = rows_to_learn(trunk, part, hidden.index_select(0, label_rows), reference)
            found = method.loss(rows, normalisers[index])
            losses.append(found.total)
            add_up(sums[index], found)
            start += part.num_tokens
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return [
        _batch_loss(found, sum(part.num_tokens for part in batch))
        for found, batch in zip(sums, batches, strict=True)
    ]


@torch.no_grad()
def reference_rows(trunk: Trunk, part: MicroBatch) -> Tensor:
    """Return what the base model says at a micro-batch's labels, [labels, hidden]."""
    batch = pack([SequenceRows(sequence) for sequence in part.sequences], trunk.device)
    return trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))


def rows_to_learn(
    trunk: Trunk, part: MicroBatch, hidden: Tensor, reference: Tensor | None
) -> LabelRows:
    """Return a micro-batch's labels with what the model says at each of them."""
    return LabelRows(
        hidden=hidden,
        reference=reference,
        head_weight=trunk.head_weight,
        targets=part.targets.to(trunk.device),
        weights=part.weights.to(trunk.device),
        owners=part.owners.to(trunk.device),
        scores=part.scores.to(trunk.device),
    )


def add_up(sums: dict[str, Tensor], found: MethodLoss) -> None:
    """Add a micro-batch's loss and metrics to those of its batch, without leaving the device."""
    for name, value in {"loss": found.total.detach(), **found.metrics}.items():
        sums[name] = sums[name] + value if name in sums else value


def as_floats(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetch all sums from the device at once."""
    values: list[float] = torch.stack([value.double() for value in sums.values()]).tolist()
    return dict(zip(sums, values, strict=True))


def _batch_loss(sums: Mapping[str, Tensor], num_tokens: int) -> BatchLoss:
    metrics = as_floats(sums)
    return BatchLoss(metrics.pop("loss"), metrics, num_tokens)


def _passes(
    batches: Sequence[Sequence[MicroBatch]], token_budget: int
) -> Iterator[list[tuple[int, MicroBatch]]]:
    """Yield (session, micro-batch) pairs that share a pass: whole ones, never parts of them."""
    rounds = max(len(batch) for batch in batches)
    queue = [
        (index, batch[turn])
        for turn in range(rounds)
        for index, batch in enumerate(batches)
        if turn < len(batch)
    ]
    together: list[tuple[int, MicroBatch]] = []
    for index, part in queue:
        num_tokens = sum(other.num_tokens for _, other in together)
        if together and num_tokens + part.num_tokens > token_budget:
            yield together
            together = []
        together.append((index, part))
    yield together
