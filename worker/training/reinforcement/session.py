"""A session whose batches are answers that it samples itself."""

from collections.abc import Sequence

import torch

from app.domain.job_spec import JobSpec
from worker.training.batches import MicroBatch, derived_seed, pack_sequences
from worker.training.losses.policy import group_advantages
from worker.training.methods import Method
from worker.training.methods.reinforcement import RolloutOptions
from worker.training.reinforcement.prompts import PromptDataset
from worker.training.reinforcement.rollouts import Answer, Asked, Rollouts
from worker.training.session import Session
from worker.trunk.chat import EncodedRecord
from worker.trunk.lora import LoraAdapter


class ReinforcementSession(Session):
    """See `Session`: a batch is a group of answers to each of its prompts.

    Each answer is drawn with a seed that follows from the job's, the step, the record and its place
    in the group: a resumed run samples what an uninterrupted one does.

    Args:
        prompts: what is answered.
        rollouts: samples with the adapter of this session, which must be on its trunk.
    """

    def __init__(
        self,
        spec: JobSpec,
        method: Method,
        adapter: LoraAdapter,
        prompts: PromptDataset,
        rollouts: Rollouts,
        device: torch.device,
        *,
        records: Sequence[int],
        reference: str | None,
    ) -> None:
        super().__init__(
            spec, method, adapter, prompts.tokens, device, records=records, reference=reference
        )
        self._prompts = prompts
        self._rollouts = rollouts
        self._options = RolloutOptions.of(spec.method_options)

    def next_batch(self, token_budget: int) -> list[MicroBatch]:
        """Sample and grade the answers of the next step.

        Raises:
            TrainingFailed: the grader could not grade any of them.
        """
        group_size = self._options.group_size
        asked = [
            Asked(
                self._prompts.prompt_ids(record),
                self._prompts.items[record],
                derived_seed(self._seed, "answer", self.step, record, place),
            )
            for record in self.next_records()
            for place in range(group_size)
        ]
        answers = self._rollouts.answer(asked, self.name)
        rewards = torch.tensor([answer.result.reward for answer in answers])
        found = group_advantages(rewards.view(-1, group_size), self._options.scale_rewards)
        self.batch_metrics = means_of(answers) | {
            "reward_mean": found.metrics["reward"],
            "reward_std": found.metrics["reward_std"],
            "groups_alike": found.metrics["frac_reward_zero_std"],
        }
        return list(
            pack_sequences(
                [
                    EncodedRecord(
                        input_ids=[*one.prompt_ids, *answer.generated.token_ids],
                        loss_weights=[0] * len(one.prompt_ids)
                        + [1] * len(answer.generated.token_ids),
                        truncated=answer.generated.finish_reason == "length",
                        score=advantage,
                    )
                    for one, answer, advantage in zip(
                        asked, answers, found.values.flatten().tolist(), strict=True
                    )
                ],
                token_budget,
            )
        )


def means_of(answers: Sequence[Answer]) -> dict[str, float]:
    """Return what is told of answers beside their rewards: means, and how many had no grade."""
    lengths = [len(one.generated.token_ids) for one in answers]
    cut = [one.generated.finish_reason == "length" for one in answers]
    return {
        "completion_length": sum(lengths) / len(answers),
        "completions_cut": sum(cut) / len(answers),
        "grader_failures": float(sum(bool(one.result.errors) for one in answers)),
    }
