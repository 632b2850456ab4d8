"""Supervised fine-tuning: maximise the likelihood of the assistant's turns."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from app.domain.datasets import ChatRecord, CompletionRecord, Record
from app.domain.job_spec import JobSpec
from worker.evaluation.measure import Scored
from worker.training.batches import MicroBatch
from worker.training.losses.cross_entropy import chunked_cross_entropy
from worker.training.methods import LabelRows, LookAt, MethodLoss, SequenceScores
from worker.trunk.chat import EncodedRecord, encode_record


class Supervised:
    """The mean cross-entropy of all learnt tokens in the batch, whatever record they are in."""

    needs_reference = False
    needs_prompts = False

    def __init__(self, spec: JobSpec) -> None:
        self._label_smoothing = spec.hyperparameters.label_smoothing

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        assert isinstance(record, ChatRecord | CompletionRecord)
        return [encode_record(tokenizer, record, max_length_tokens)]

    def survey(self, batch: Iterable[MicroBatch], look_at: LookAt) -> float:
        """Return the sum of the weights of all learnt tokens."""
        return sum(float(part.weights.sum()) for part in batch)

    def loss(self, rows: LabelRows, survey: float) -> MethodLoss:
        weights = rows.weights / survey
        found = chunked_cross_entropy(
            rows.hidden,
            rows.head_weight,
            rows.targets,
            weights,
            label_smoothing=self._label_smoothing,
        )
        return MethodLoss(found.total, {"mean_token_accuracy": found.is_correct.float() @ weights})

    def judge(self, found: SequenceScores) -> Scored | None:
        return None
