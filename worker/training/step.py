"""One step on a trunk: the gradients of one or more sessions' next batches, in shared passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.batches import MicroBatch, pack_sequences
from worker.training.methods import LabelRows, MethodLoss
from worker.training.parallel import SOLO, Group
from worker.training.session import BatchLoss, Session
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.chat import EncodedRecord
from worker.trunk.trunk import Trunk


def trunk_step(
    trunk: Trunk, sessions: Sequence[Session], token_budget: int, group: Group = SOLO
) -> list[BatchLoss]:
    """Accumulate the gradients of each session's next batch, and return what each came to.

    What a batch's sums are divided by is decided by its method over all its records, however they
    are packed. A session is packed alike alone and in company, so its dropout draws and the order
    of its sums are the same; products over more rows may still differ in the last bits.

    Args:
        trunk: with every session's adapter attached under the session's name.
        sessions: of which none has accumulated gradients.
        token_budget: tokens in one pass, unless a single record is longer.
        group: the processes among which each batch is divided. What a method has to know of the
            whole of it, each of them finds out for itself.
    """
    batches = [session.next_batch(token_budget) for session in sessions]
    surveys = [
        session.method.survey(batch, Observer(trunk, session, token_budget))
        for session, batch in zip(sessions, batches, strict=True)
    ]
    shares = batches
    if group.size > 1:
        shares = [session.next_share(token_budget, group) for session in sessions]
    sums: list[dict[str, Tensor]] = [{} for _ in sessions]
    for together in _passes(shares, token_budget):
        sequences = [
            SequenceRows(sequence, sessions[index].name)
            for index, part in together
            for sequence in part.sequences
        ]
        hidden = trunk.hidden(pack(sequences, trunk.device))
        losses: list[Tensor] = []
        start = 0
        for index, part in together:
            label_rows = (part.label_rows + start).to(trunk.device)
            rows = rows_to_learn(trunk, sessions[index], part, hidden.index_select(0, label_rows))
            found = sessions[index].method.loss(rows, surveys[index])
            losses.append(found.total)
            add_up(sums[index], found)
            start += part.num_tokens
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    means = [group.sum_metrics(as_floats(found)) for found in sums]
    for session in sessions:
        group.sum_gradients(session.optimizer.weights())
    return [
        _batch_loss(found, session.batch_metrics, sum(part.num_tokens for part in batch))
        for found, session, batch in zip(means, sessions, batches, strict=True)
    ]


@torch.no_grad()
def observe(trunk: Trunk, session: Session, part: MicroBatch) -> LabelRows:
    """Return what a session's model says at a micro-batch's labels, without gradient."""
    return rows_to_learn(trunk, session, part, _label_rows(trunk, part, session.name))


def rows_to_learn(trunk: Trunk, session: Session, part: MicroBatch, hidden: Tensor) -> LabelRows:
    """Return a micro-batch's labels with what the model says at each of them, [labels, hidden]."""
    reference: Tensor | None = None
    if session.method.needs_reference:
        with torch.no_grad():
            reference = _label_rows(trunk, part, session.reference)
    return LabelRows(
        hidden=hidden,
        reference=reference,
        head_weight=trunk.head_weight,
        targets=part.targets.to(trunk.device),
        weights=part.weights.to(trunk.device),
        owners=part.owners.to(trunk.device),
        scores=part.scores.to(trunk.device),
    )


@dataclass(frozen=True, slots=True)
class Observer:
    """Runs a session's model on sequences outside its batch: a `methods.LookAt`.

    Attributes:
        before_pass: called before each pass; may raise to end it.
    """

    trunk: Trunk
    session: Session
    token_budget: int
    before_pass: Callable[[], None] = lambda: None

    def __call__(self, sequences: Sequence[EncodedRecord]) -> Iterator[LabelRows]:
        for part in pack_sequences(sequences, self.token_budget):
            self.before_pass()
            yield observe(self.trunk, self.session, part)


def _label_rows(trunk: Trunk, part: MicroBatch, adapter: str | None) -> Tensor:
    batch = pack([SequenceRows(ids, adapter) for ids in part.sequences], trunk.device)
    return trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))


def add_up(sums: dict[str, Tensor], found: MethodLoss) -> None:
    """Add a micro-batch's loss and metrics to those of its batch, without leaving the device."""
    for name, value in {"loss": found.total.detach(), **found.metrics}.items():
        sums[name] = sums[name] + value if name in sums else value


def as_floats(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetch all sums from the device at once."""
    if not sums:
        return {}
    values: list[float] = torch.stack([value.double() for value in sums.values()]).tolist()
    return dict(zip(sums, values, strict=True))


def _batch_loss(
    means: Mapping[str, float], more: Mapping[str, float], num_tokens: int
) -> BatchLoss:
    metrics = dict(means)
    return BatchLoss(metrics.pop("loss"), {**more, **metrics}, num_tokens)


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
    if together:
        yield together
