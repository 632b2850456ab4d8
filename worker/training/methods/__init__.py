"""Training methods: one file each, named by dotted path in `app.domain.methods.METHODS`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record
from app.domain.job_spec import JobSpec
from worker.training.batches import MicroBatch
from worker.trunk.chat import EncodedRecord


@dataclass(frozen=True, slots=True)
class LabelRows:
    """What the model says where a micro-batch has something to learn.

    Attributes:
        hidden: [rows, hidden], the trunk's output; carries the gradient.
        reference: the same rows without the adapter, for methods that compare; no gradient.
        head_weight: [vocab, hidden].
        targets: [rows] int64, the token to be predicted.
        weights: [rows] float32, each row's weight in the data.
        owners: [rows] int64, the sequence that each row belongs to; sequences of one record are
            neighbours, in the order in which the method encoded them.
        scores: [sequences] float32, what the method gave each sequence.
    """

    hidden: Tensor
    reference: Tensor | None
    head_weight: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class MethodLoss:
    """What one micro-batch adds to its batch.

    Attributes:
        total: [] float32, carries the gradient; over the micro-batches of a batch it sums to the
            batch's loss.
        metrics: [] float32 each, without gradient; they sum to the batch's means.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """What a training method decides: which tokens are learnt, and at which loss.

    Everything else (packing, accumulation, optimizer, checkpoints) is the same for all. A method
    keeps no state: one object may serve several sessions.

    Args:
        spec: of the job; a method reads its own options and the hyperparameters from it.
    """

    needs_reference: bool

    def __init__(self, spec: JobSpec) -> None: ...

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        """Return the sequences of a record, and which of their tokens carry loss.

        Raises:
            InvalidInput: the record cannot be encoded.
        """

    def normaliser(self, batch: Sequence[MicroBatch]) -> float:
        """Return what the sums of a whole batch are divided by."""

    def loss(self, rows: LabelRows, normaliser: float) -> MethodLoss:
        """Return the loss of a micro-batch, and what it measured."""
