"""Training methods: one file each, named by dotted path in `app.domain.methods.METHODS`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record
from app.domain.job_spec import JobSpec
from worker.evaluation.measure import Scored
from worker.training.batches import MicroBatch
from worker.trunk.chat import EncodedRecord


@dataclass(frozen=True, slots=True)
class LabelRows:
    """What the model says where a micro-batch has something to learn.

    Attributes:
        hidden: [rows, hidden], the trunk's output; carries the gradient.
        reference: the same rows under the model that the run started from, for methods that
            compare; no gradient.
        head_weight: [vocab, hidden].
        targets: [rows] int64, the token to be predicted.
        weights: [rows] float32, each row's weight in the data; 0 for what is looked at only.
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


@dataclass(frozen=True, slots=True)
class SequenceScores:
    """What a model makes of sequences that it does not learn from.

    Attributes:
        log_probabilities: [sequences] float64, summed over each one's learnt tokens.
        num_tokens: [sequences] float64, how many those are.
        scores: [sequences] float32, what the method gave each.
        records: [sequences] int64, place of the record that each belongs to; counted from 0.
    """

    log_probabilities: Tensor
    num_tokens: Tensor
    scores: Tensor
    records: Tensor


# What the model in training says of sequences outside the batch: labels without gradient.
LookAt = Callable[[Sequence[EncodedRecord]], Iterator[LabelRows]]


class Method(Protocol):
    """What a training method decides: which tokens are learnt, and at which loss.

    Everything else (packing, accumulation, optimizer, checkpoints) is the same for all. A method
    keeps no state: one object may serve several sessions.

    Attributes:
        needs_reference: fill `LabelRows.reference`.
        needs_prompts: what comes before a wanted answer has labels too, of weight 0.

    Args:
        spec: of the job; a method reads its own options and the hyperparameters from it.
    """

    needs_reference: bool
    needs_prompts: bool

    def __init__(self, spec: JobSpec) -> None: ...

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        """Return the sequences of a record, and which of their tokens carry loss.

        Raises:
            InvalidInput: the record cannot be encoded.
        """

    def survey(self, batch: Iterable[MicroBatch], look_at: LookAt) -> Any:
        """Return what the loss of each micro-batch has to know of the whole batch.

        How many tokens or answers its sums are divided by, for instance: so that how a batch is
        packed changes nothing.

        Args:
            batch: can be gone through more than once.
            look_at: runs the model on other sequences, for what a count cannot tell.
        """

    def loss(self, rows: LabelRows, survey: Any) -> MethodLoss:
        """Return the loss of a micro-batch, and what it measured.

        Args:
            survey: what `survey` returned for the batch.
        """

    def judge(self, found: SequenceScores) -> Scored | None:
        """Return what the method measures of held-out records beside their likelihood."""
