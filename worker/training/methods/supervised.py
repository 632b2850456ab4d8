"""Supervised fine-tuning: maximise the likelihood of the assistant's turns."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from app.domain.datasets import ChatRecord, CompletionRecord, Record
from app.domain.job_spec import JobSpec
from worker.training.batches import MicroBatch
from worker.training.losses.cross_entropy import chunked_cross_entropy
from worker.training.methods import LabelRows, MethodLoss
from worker.trunk.chat import EncodedRecord, encode_record


class Supervised:
    """The mean cross-entropy of all learnt tokens in the batch, whatever record they are in."""

    needs_reference = False

    def __init__(self, spec: JobSpec) -> None:
        self._label_smoothing = spec.hyperparameters.label_smoothing

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        assert isinstance(record, ChatRecord | CompletionRecord)
        return [encode_record(tokenizer, record, max_length_tokens)]

    def normaliser(self, batch: Sequence[MicroBatch]) -> float:
        return sum(float(part.weights.sum()) for part in batch)

    def loss(self, rows: LabelRows, normaliser: float) -> MethodLoss:
        weights = rows.weights / normaliser
        found = chunked_cross_entropy(
            rows.hidden,
            rows.head_weight,
            rows.targets,
            weights,
            label_smoothing=self._label_smoothing,
        )
        return MethodLoss(found.total, {"mean_token_accuracy": found.is_correct.float() @ weights})
