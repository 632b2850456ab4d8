"""Learning from rewards: group-relative policy optimisation over answers that a run samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record, ReinforcementRecord, as_template_messages
from app.domain.job_spec import JobSpec
from app.domain.methods.reinforcement import MAX_GROUP_SIZE
from worker.evaluation.measure import Scored
from worker.training.batches import MicroBatch
from worker.training.losses.log_probabilities import token_log_probabilities
from worker.training.losses.policy import PolicyOptions, PolicyTokens, StepTotals, policy_loss
from worker.training.methods import LabelRows, LookAt, MethodLoss, SequenceScores
from worker.trunk.chat import EncodedRecord, encode_prompt


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How answers are sampled and compared.

    Attributes:
        group_size: answers to each prompt of a step.
        eval_samples: answers to each held-out prompt.
    """

    group_size: int
    eval_samples: int
    max_completion_tokens: int
    temperature: float
    scale_rewards: str

    @classmethod
    def of(cls, asked: dict[str, Any]) -> "RolloutOptions":
        """Return the options of a spec's `method_options`."""
        group_size = round(asked["group_size"] * asked["compute_multiplier"])
        return cls(
            group_size=min(max(group_size, 2), MAX_GROUP_SIZE),
            eval_samples=asked["eval_samples"],
            max_completion_tokens=asked["max_completion_tokens"],
            temperature=asked["temperature"],
            scale_rewards=asked["scale_rewards"],
        )


class Reinforcement:
    """The policy's loss on answers that it has sampled itself.

    A sequence is a prompt with one answer, whose tokens carry loss, and its score is the answer's
    advantage over those to the same prompt. A round of sampling is learnt from in one step, before
    which the policy is the one that sampled.
    """

    needs_prompts = False

    def __init__(self, spec: JobSpec) -> None:
        asked = spec.method_options
        self._max_prompt_tokens = (
            spec.hyperparameters.max_length_tokens - asked["max_completion_tokens"]
        )
        self._temperature: float = asked["temperature"]
        self._options = PolicyOptions(
            loss_type=asked["loss_type"],
            scale_rewards=asked["scale_rewards"],
            beta=asked["beta"],
            max_completion_tokens=asked["max_completion_tokens"],
        )
        self.needs_reference = self._options.beta != 0

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        """Return the prompt; nothing where it leaves no room for an answer."""
        assert isinstance(record, ReinforcementRecord)
        prompt_ids = encode_prompt(tokenizer, as_template_messages(record), record.tools)
        if len(prompt_ids) > self._max_prompt_tokens:
            return []
        return [EncodedRecord(prompt_ids, [0] * len(prompt_ids), truncated=False)]

    def survey(self, batch: Iterable[MicroBatch], look_at: LookAt) -> StepTotals:
        num_sequences = num_tokens = 0
        for part in batch:
            num_sequences += len(part.sequences)
            num_tokens += part.targets.shape[0]
        return StepTotals(num_sequences, num_tokens, num_tokens)

    def loss(self, rows: LabelRows, survey: StepTotals) -> MethodLoss:
        def log_probabilities(hidden: Tensor) -> Tensor:
            return token_log_probabilities(
                hidden, rows.head_weight, rows.targets, self._temperature
            ).values

        reference = None if rows.reference is None else log_probabilities(rows.reference)
        tokens = PolicyTokens(
            values=log_probabilities(rows.hidden),
            sampled=None,
            reference=reference,
            sequence_ids=rows.owners,
            advantages=rows.scores,
        )
        found = policy_loss(tokens, survey, self._options)
        metrics = {
            name: found.metrics[name].sum() / survey.num_tokens
            for name in ("kl",)
            if name in found.metrics
        }
        return MethodLoss(found.total, metrics)

    def judge(self, found: SequenceScores) -> Scored | None:
        return None
