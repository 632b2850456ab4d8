"""Held-out records of text generation, measured row by row."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.evaluation import language
from worker.evaluation.worst_rows import worst_rows
from worker.training.batches import MicroBatch, micro_batches
from worker.training.learner import Measured
from worker.training.losses.cross_entropy import chunked_cross_entropy
from worker.training.records import EncodedDataset
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


@torch.no_grad()
def measure_rows(
    trunk: Trunk,
    adapter: str | None,
    dataset: EncodedDataset,
    records: Sequence[int],
    token_budget: int,
    is_interrupted: Callable[[], bool],
) -> Measured | None:
    """Return the likelihood of each record's learnt tokens; None when interrupted.

    Of a record with answers that are not wanted, those that are wanted count.

    Args:
        adapter: name of the attached adapter to measure; None measures the base model.
    """
    sums: list[Tensor] = []
    excerpts: list[str] = []
    for part in micro_batches(dataset, records, token_budget):
        if is_interrupted():
            return None
        sums.append(_sums_by_record(trunk, adapter, part, dataset))
        excerpts += [_excerpt(trunk, dataset, record) for record in part.records]
    losses, tokens, correct = torch.cat(sums, dim=1).tolist()
    means = [loss / max(count, 1.0) for loss, count in zip(losses, tokens, strict=True)]
    worst = worst_rows(
        [dataset.lines[record] for record in records],
        means,
        expected=[f"{count:.0f} learnt tokens" for count in tokens],
        predicted=[f"{found:.0f} of them as the likeliest" for found in correct],
        excerpts=excerpts,
    )
    return Measured(language.score(losses, tokens, correct), worst)


def _sums_by_record(
    trunk: Trunk, adapter: str | None, part: MicroBatch, dataset: EncodedDataset
) -> Tensor:
    """Return [3, records] float64: log-likelihood lost, tokens, and how many were the likeliest."""
    batch = pack([SequenceRows(sequence, adapter) for sequence in part.sequences], trunk.device)
    hidden = trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))
    found = chunked_cross_entropy(
        hidden,
        trunk.head_weight,
        part.targets.to(trunk.device),
        part.weights.to(trunk.device),
    )
    record_of_sequence = torch.tensor(
        [place for place, record in enumerate(part.records) for _ in dataset.sequences(record)]
    )
    weights = (part.weights * (part.scores > 0)[part.owners]).double()
    columns = torch.stack(
        [found.nll.double().cpu(), torch.ones_like(weights), found.is_correct.cpu()]
    )
    sums = torch.zeros(3, len(part.records), dtype=torch.float64)
    return sums.index_add_(1, record_of_sequence[part.owners], columns * weights)


def _excerpt(trunk: Trunk, dataset: EncodedDataset, record: int) -> str:
    token_ids, _ = dataset.tokens(dataset.sequences(record)[0])
    return str(trunk.tokenizer.decode(token_ids[:64].tolist()))
