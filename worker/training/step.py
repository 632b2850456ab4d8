"""One step on a trunk: the gradients of one or more sessions' next batches, in shared passes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worker.training.batches import MicroBatch
from worker.training.session import BatchLoss, Session
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


def trunk_step(trunk: Trunk, sessions: Sequence[Session], token_budget: int) -> list[BatchLoss]:
    """Accumulate the gradients of each session's next batch, and return what each came to.

    A batch's loss is `sum(weight * nll) / sum(weight)` over all its records, however they are
    packed. A session is packed alike alone and in company, so its dropout draws and the order of
    its sums are the same; products over more rows may still differ in the last bits.

    Args:
        trunk: with every session's adapter attached under the session's name.
        sessions: of which none has accumulated gradients.
        token_budget: tokens in one pass, unless a single record is longer.
    """
    batches = [session.next_batch(token_budget) for session in sessions]
    totals = [_weight_sum(batch) for batch in batches]
    sums = [torch.zeros(2, dtype=torch.float32, device=trunk.device) for _ in sessions]
    for together in _passes(batches, token_budget):
        hidden = trunk.hidden(
            pack(
                [
                    SequenceRows(sequence, sessions[index].name)
                    for index, part in together
                    for sequence in part.sequences
                ],
                trunk.device,
            )
        )
        losses: list[Tensor] = []
        start = 0
        for index, part in together:
            weights = (part.weights / totals[index]).to(trunk.device)
            label_rows = (part.label_rows + start).to(trunk.device)
            result = sessions[index].method.loss(
                hidden.index_select(0, label_rows),
                trunk.head_weight,
                part.targets.to(trunk.device),
                weights,
            )
            losses.append(result.total)
            sums[index] += torch.stack([result.total.detach(), result.is_correct.float() @ weights])
            start += part.num_tokens
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    found: list[BatchLoss] = []
    for both, batch in zip(sums, batches, strict=True):
        loss, accuracy = both.tolist()
        found.append(BatchLoss(loss, accuracy, sum(part.num_tokens for part in batch)))
    return found


def _weight_sum(batch: Sequence[MicroBatch]) -> float:
    return sum(float(part.weights.sum()) for part in batch)


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
