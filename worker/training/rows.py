"""Held-out records of text generation, measured row by row."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.evaluation import language
from worker.evaluation.measure import joined
from worker.evaluation.worst_rows import worst_rows
from worker.training.batches import MicroBatch, RecordBatch
from worker.training.learner import Measured
from worker.training.losses.cross_entropy import chunked_cross_entropy
from worker.training.losses.log_probabilities import sum_by_segment
from worker.training.methods import Method, SequenceScores
from worker.training.records import EncodedDataset
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk


@torch.no_grad()
def measure_rows(
    trunk: Trunk,
    method: Method,
    adapter: str | None,
    dataset: EncodedDataset,
    records: Sequence[int],
    token_budget: int,
    is_interrupted: Callable[[], bool],
) -> Measured | None:
    """Return the likelihood of each record's learnt tokens; None when interrupted.

    Of a record with answers that are not wanted, those that are wanted count. What the method has
    to say of the records comes beside it.

    Args:
        adapter: name of the attached adapter to measure; None measures the base model.
    """
    sums: list[Tensor] = []
    scores: list[Tensor] = []
    for part in RecordBatch(dataset, records, token_budget):
        if is_interrupted():
            return None
        sums.append(_sums_by_sequence(trunk, adapter, part))
        scores.append(part.scores)
    by_sequence, wanted = torch.cat(sums, dim=1), torch.cat(scores)
    places = torch.tensor(
        [place for place, record in enumerate(records) for _ in dataset.sequences(record)]
    )
    by_record = torch.zeros(3, len(records), dtype=torch.float64)
    by_record.index_add_(1, places, by_sequence * (wanted > 0))
    losses, tokens, correct = by_record.tolist()
    means = [loss / max(count, 1.0) for loss, count in zip(losses, tokens, strict=True)]
    worst = worst_rows(
        [dataset.lines[record] for record in records],
        means,
        expected=[f"{count:.0f} learnt tokens" for count in tokens],
        predicted=[f"{found:.0f} of them as the likeliest" for found in correct],
        excerpts=[_excerpt(trunk, dataset, record) for record in records],
    )
    scored = language.score(losses, tokens, correct)
    judged = method.judge(SequenceScores(-by_sequence[0], by_sequence[1], wanted, places))
    return Measured(scored if judged is None else joined(scored, judged), worst)


def _sums_by_sequence(trunk: Trunk, adapter: str | None, part: MicroBatch) -> Tensor:
    """Return [3, sequences] float64: likelihood lost, tokens, how many were the likeliest."""
    batch = pack([SequenceRows(sequence, adapter) for sequence in part.sequences], trunk.device)
    hidden = trunk.hidden(batch).index_select(0, part.label_rows.to(trunk.device))
    found = chunked_cross_entropy(
        hidden,
        trunk.head_weight,
        part.targets.to(trunk.device),
        part.weights.to(trunk.device),
    )
    weights = part.weights.double()
    columns = (found.nll.double().cpu(), torch.ones_like(weights), found.is_correct.cpu().double())
    return torch.stack(
        [sum_by_segment(one * weights, part.owners, len(part.sequences)) for one in columns]
    )


def _excerpt(trunk: Trunk, dataset: EncodedDataset, record: int) -> str:
    token_ids, _ = dataset.tokens(dataset.sequences(record)[0])
    return str(trunk.tokenizer.decode(token_ids[:64].tolist()))
