"""Learning from preferences: DPO, and the losses that are variants of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import FeedbackRecord, PreferenceRecord, Record
from app.domain.errors import TrainingFailed
from app.domain.job_spec import JobSpec
from worker.evaluation import averages
from worker.evaluation.measure import Scored
from worker.training.batches import MicroBatch
from worker.training.losses.answers import Answers, Preferences
from worker.training.losses.log_probabilities import sum_by_segment, token_log_probabilities
from worker.training.losses.preference import (
    LOSS_TYPES,
    PreferenceOptions,
    estimated_kl,
    nll_of_pairs,
    preference_loss,
)
from worker.training.methods import LabelRows, LookAt, MethodLoss, SequenceScores
from worker.training.preference_records import encode_feedback, encode_preference, mismatched
from worker.trunk.chat import EncodedRecord

# Losses that compare means over tokens, so that length earns nothing.
_BY_MEAN = ("ipo", "orpo", "simpo")


@dataclass(frozen=True, slots=True)
class AnswersInBatch:
    """What the loss of a micro-batch has to know of its batch.

    Attributes:
        chosen: how many answers are wanted.
        rejected: how many are not.
        chosen_tokens: labels of all sequences with a wanted answer.
        kl: [] float32, for `kto`.
    """

    chosen: int
    rejected: int
    chosen_tokens: int
    kl: Tensor | None = None


class Dpo:
    """The mean loss over the pairs of a batch; with `kto`, over its answers."""

    def __init__(self, spec: JobSpec) -> None:
        self._options = _options_of(spec.method_options)
        self._loss_type = LOSS_TYPES[self._options.loss_type]
        self._max_length_tokens = spec.hyperparameters.max_length_tokens
        self.needs_reference = self._loss_type.needs_reference
        self.needs_prompts = self._loss_type.needs_nll

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        if isinstance(record, PreferenceRecord):
            return encode_preference(tokenizer, record, max_length_tokens)
        assert isinstance(record, FeedbackRecord)
        return [encode_feedback(tokenizer, record, max_length_tokens)]

    def survey(self, batch: Iterable[MicroBatch], look_at: LookAt) -> AnswersInBatch:
        """Count answers and tokens; for `kto`, estimate how far the policy has gone.

        Raises:
            TrainingFailed: there are single answers, from which the loss cannot learn.
        """
        chosen = rejected = chosen_tokens = 0
        for part in batch:
            is_wanted = part.scores > 0
            chosen += int(is_wanted.sum())
            rejected += int((~is_wanted).sum())
            chosen_tokens += int(is_wanted[part.owners].sum())
        if self._loss_type.needs_pairs and chosen != rejected:
            raise TrainingFailed(
                f"the loss_type {self._options.loss_type!r} compares two answers to the same "
                "prompt, and the file has single ones",
                code="invalid_training_file",
                param="training_file",
            )
        kl = self._kl(batch, look_at) if self._loss_type.needs_kl else None
        return AnswersInBatch(chosen, rejected, chosen_tokens, kl)

    def loss(self, rows: LabelRows, survey: AnswersInBatch) -> MethodLoss:
        found = preference_loss(self._preferences(rows, survey), self._options)
        count = survey.chosen
        if not self._loss_type.needs_pairs:
            count += survey.rejected
        share = found.values.numel() / count
        return MethodLoss(found.values.sum() / count, _metrics(found.metrics, survey, share))

    def judge(self, found: SequenceScores) -> Scored | None:
        """Return the share of pairs whose preferred answer is the likelier one."""
        is_wanted = found.scores > 0
        if not torch.equal(found.records[is_wanted], found.records[~is_wanted]):
            return None  # Not in pairs: feedback.
        values = found.log_probabilities
        if self._options.loss_type in _BY_MEAN:
            values = values / found.num_tokens
        is_right = values[is_wanted] > values[~is_wanted]
        return averages.score(preference_accuracy=is_right.double().numpy())

    def _preferences(self, rows: LabelRows, survey: AnswersInBatch) -> Preferences:
        values = token_log_probabilities(rows.hidden, rows.head_weight, rows.targets).values
        policy, num_tokens = _by_answer(rows, values)
        reference: Tensor | None = None
        if rows.reference is not None:
            under = token_log_probabilities(rows.reference, rows.head_weight, rows.targets)
            reference, _ = _by_answer(rows, under.values)
        chosen_nll: Tensor | None = None
        is_wanted = rows.scores > 0
        if self._loss_type.needs_nll:
            sums = sum_by_segment(values, rows.owners, rows.scores.shape[0])[is_wanted]
            chosen_nll = nll_of_pairs(sums, survey.chosen_tokens, survey.chosen)

        def side(chosen: Tensor) -> Answers:
            under = None if reference is None else reference[chosen]
            return Answers(policy[chosen], num_tokens[chosen], under)

        return Preferences(side(is_wanted), side(~is_wanted), chosen_nll, survey.kl)

    def _kl(self, batch: Iterable[MicroBatch], look_at: LookAt) -> Tensor:
        """Return KTO's estimate, from answers to prompts that are not theirs."""
        # Wanted ones first, so that neighbours answer different prompts where there are pairs.
        answers = sorted(
            (one for part in batch for one in part.encoded()), key=lambda one: -one.score
        )
        policy: list[Tensor] = []
        reference: list[Tensor] = []
        for rows in look_at(mismatched(answers, self._max_length_tokens)):
            assert rows.reference is not None
            for hidden, sums in ((rows.hidden, policy), (rows.reference, reference)):
                values = token_log_probabilities(hidden, rows.head_weight, rows.targets).values
                sums.append(_by_answer(rows, values)[0])
        return estimated_kl(torch.cat(policy), torch.cat(reference))


def _options_of(asked: dict[str, Any]) -> PreferenceOptions:
    given = {name: value for name, value in asked.items() if value is not None}
    return PreferenceOptions(
        **{one.name: given[one.name] for one in fields(PreferenceOptions) if one.name in given}
    )


def _by_answer(rows: LabelRows, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return [sequences] sums over what is learnt of each sequence, and over how many tokens."""
    count = rows.scores.shape[0]
    return (
        sum_by_segment(values * rows.weights, rows.owners, count),
        sum_by_segment(rows.weights, rows.owners, count),
    )


def _metrics(
    measured: Mapping[str, Tensor], survey: AnswersInBatch, share: float
) -> dict[str, Tensor]:
    """Return a micro-batch's part of the batch's means.

    Args:
        share: of the batch's loss that the micro-batch has.
    """
    found: dict[str, Tensor] = {}
    if survey.chosen:
        found["reward_chosen"] = measured["rewards/chosen"].sum() / survey.chosen
    if survey.rejected:
        found["reward_rejected"] = measured["rewards/rejected"].sum() / survey.rejected
    if survey.chosen and survey.rejected:
        found["reward_margin"] = found["reward_chosen"] - found["reward_rejected"]
    if "rewards/accuracies" in measured:
        found["reward_accuracy"] = measured["rewards/accuracies"].sum() / survey.chosen
    if "kl" in measured:
        found["kl"] = measured["kl"].sum() * share
    return found
