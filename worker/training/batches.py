"""Which records a step takes, and how they are packed into micro-batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.records import EncodedDataset


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records that go through the trunk together, one after another.

    Attributes:
        sequences: token ids of each sequence of the records.
        label_rows: [labels] int64, rows whose next token carries loss.
        targets: [labels] int64, that next token.
        weights: [labels] float32, its weight in the loss.
        owners: [labels] int64, the sequence that each label belongs to.
        scores: [sequences] float32, what the method knows of each.
        records: each record's number in its dataset.
    """

    sequences: tuple[list[int], ...]
    label_rows: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    scores: Tensor
    records: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def derived_seed(*parts: int | str) -> int:
    """Return a seed that depends on all parts and on nothing else."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def epoch_order(num_records: int, seed: int, epoch: int) -> list[int]:
    """Return the order of records in one pass: a position in it is enough to resume."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(num_records, generator=generator).tolist()
    return order


def split(num_records: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return which records are trained on and which are kept out, at least one of the former."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "holdout"))
    order: list[int] = torch.randperm(num_records, generator=generator).tolist()
    kept_out = min(round(share * num_records), num_records - 1)
    return sorted(order[kept_out:]), sorted(order[:kept_out])


def micro_batches(
    dataset: EncodedDataset, records: Sequence[int], token_budget: int
) -> Iterator[MicroBatch]:
    """Pack records in order, as many together as stay within the budget and at least one."""
    together: list[int] = []
    num_tokens = 0
    for record in records:
        length = dataset.length(record)
        if together and num_tokens + length > token_budget:
            yield _micro_batch(dataset, together)
            together, num_tokens = [], 0
        together.append(record)
        num_tokens += length
    if together:
        yield _micro_batch(dataset, together)


def _micro_batch(dataset: EncodedDataset, records: Sequence[int]) -> MicroBatch:
    chosen = [sequence for record in records for sequence in dataset.sequences(record)]
    sequences: list[list[int]] = []
    label_rows: list[Tensor] = []
    targets: list[Tensor] = []
    weights: list[Tensor] = []
    owners: list[Tensor] = []
    start = 0
    for place, sequence in enumerate(chosen):
        token_ids, loss_weights = dataset.tokens(sequence)
        # The row before a learnt token predicts it; the first token has no such row.
        rows = loss_weights[1:].nonzero().squeeze(1)
        label_rows.append(rows + start)
        targets.append(token_ids[rows + 1].long())
        weights.append(loss_weights[rows + 1].float())
        owners.append(torch.full_like(rows, place))
        sequences.append(token_ids.tolist())
        start += token_ids.shape[0]
    return MicroBatch(
        sequences=tuple(sequences),
        label_rows=torch.cat(label_rows),
        targets=torch.cat(targets),
        weights=torch.cat(weights),
        owners=torch.cat(owners),
        scores=torch.tensor([dataset.scores[sequence] for sequence in chosen]),
        records=tuple(records),
    )
