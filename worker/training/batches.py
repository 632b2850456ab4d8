"""Which records a step takes, and how they are packed into micro-batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.records import EncodedDataset
from worker.trunk.chat import EncodedRecord


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records that go through the trunk together, one after another.

    Attributes:
        sequences: token ids of each sequence of the records.
        label_rows: [labels] int64, rows whose next token is looked at.
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

    def encoded(self) -> list[EncodedRecord]:
        """Return the sequences as they were before they were packed."""
        found: list[EncodedRecord] = []
        start = 0
        for place, sequence in enumerate(self.sequences):
            learnt = (self.owners == place) & (self.weights > 0)
            loss_weights = torch.zeros(len(sequence), dtype=torch.int64)
            loss_weights[self.label_rows[learnt] - start + 1] = 1
            score = float(self.scores[place])
            found.append(EncodedRecord(sequence, loss_weights.tolist(), False, score))
            start += len(sequence)
        return found


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


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records of a dataset, packed anew each time that they are gone through.

    Attributes:
        records: in the order in which they are packed: as many together as stay within the budget,
            and at least one.
        token_budget: tokens of one micro-batch.
        with_prompts: whether what comes before a wanted answer has labels too, of weight 0: they
            are looked at and not learnt.
    """

    dataset: EncodedDataset
    records: Sequence[int]
    token_budget: int
    with_prompts: bool = False

    def __iter__(self) -> Iterator[MicroBatch]:
        dataset = self.dataset
        lengths = [dataset.length(record) for record in self.records]
        for places in _packs(lengths, self.token_budget):
            records = [self.records[place] for place in places]
            numbers = [number for record in records for number in dataset.sequences(record)]
            yield _micro_batch(
                [_Sequence(*dataset.tokens(number), dataset.scores[number]) for number in numbers],
                records,
                self.with_prompts,
            )


def pack_sequences(sequences: Sequence[EncodedRecord], token_budget: int) -> Iterator[MicroBatch]:
    """Pack sequences that are in no dataset, each as a record of its own."""
    for places in _packs([len(one.input_ids) for one in sequences], token_budget):
        chosen = [sequences[place] for place in places]
        yield _micro_batch([_Sequence.of(one) for one in chosen], places)


@dataclass(frozen=True, slots=True)
class _Sequence:
    token_ids: Tensor
    loss_weights: Tensor
    score: float

    @classmethod
    def of(cls, encoded: EncodedRecord) -> "_Sequence":
        return cls(
            torch.tensor(encoded.input_ids), torch.tensor(encoded.loss_weights), encoded.score
        )


def _packs(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield places in order, as many together as stay within the budget and at least one."""
    together: list[int] = []
    num_tokens = 0
    for place, length in enumerate(lengths):
        if together and num_tokens + length > token_budget:
            yield together
            together, num_tokens = [], 0
        together.append(place)
        num_tokens += length
    if together:
        yield together


def _micro_batch(
    chosen: Sequence[_Sequence], records: Sequence[int], with_prompts: bool = False
) -> MicroBatch:
    label_rows: list[Tensor] = []
    targets: list[Tensor] = []
    weights: list[Tensor] = []
    owners: list[Tensor] = []
    start = 0
    for place, one in enumerate(chosen):
        # The row before a token predicts it; the first token has no such row.
        following = one.loss_weights[1:]
        rows = following.nonzero().squeeze(1)
        if with_prompts and one.score > 0 and rows.numel():
            rows = torch.arange(int(rows[-1]) + 1)
        label_rows.append(rows + start)
        targets.append(one.token_ids[rows + 1].long())
        weights.append(following[rows].float())
        owners.append(torch.full_like(rows, place))
        start += one.token_ids.shape[0]
    return MicroBatch(
        sequences=tuple(one.token_ids.tolist() for one in chosen),
        label_rows=torch.cat(label_rows),
        targets=torch.cat(targets),
        weights=torch.cat(weights),
        owners=torch.cat(owners),
        scores=torch.tensor([one.score for one in chosen]),
        records=tuple(records),
    )
