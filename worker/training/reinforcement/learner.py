"""Learning from rewards, in training: judged by the rewards of held-out prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from worker.evaluation import averages
from worker.evaluation.worst_rows import worst_rows
from worker.training.batches import derived_seed
from worker.training.learner import Measured, WhichModel, WhichRows
from worker.training.methods.reinforcement import RolloutOptions
from worker.training.metrics import ValidationMetrics
from worker.training.packed_learner import PackedLearner
from worker.training.parallel import Group
from worker.training.reinforcement.prompts import PromptDataset
from worker.training.reinforcement.rollouts import Answer, Asked, Rollouts
from worker.training.reinforcement.session import ReinforcementSession, means_of
from worker.training.trained_weights import TrainedWeights
from worker.trunk.lora import LoraAdapter
from worker.trunk.trunk import Trunk


class ReinforcementLearner(PackedLearner):
    """See `learner.Learner` and `PackedLearner`.

    Args:
        heldout: prompts to validate on, and which of them.
        seed: of the draws of answers to these, alike at each validation.
    """

    def __init__(
        self,
        trunk: Trunk,
        session: ReinforcementSession,
        weights: TrainedWeights,
        rollouts: Rollouts,
        heldout: tuple[PromptDataset, Sequence[int]] | None,
        options: RolloutOptions,
        seed: int,
        token_budget: int,
        write_origin: Callable[[Path, int], None],
        reference: LoraAdapter | None,
    ) -> None:
        judged_on = (heldout[0].tokens, heldout[1]) if heldout is not None else None
        super().__init__(
            trunk,
            session,
            weights,
            judged_on,
            token_budget,
            write_origin,
            reference=reference,
        )
        self._rollouts = rollouts
        self._prompts = heldout
        self._options = options
        self._seed = seed

    def share_steps(self, group: Group) -> bool:
        # Its answers are sampled in one process, and most of a step is that.
        return False

    def validate(self, is_interrupted: Callable[[], bool]) -> ValidationMetrics | None:
        """Return the mean reward; what is minimised, the loss, is minus that."""
        answers = self._answer_heldout(self._session.name, is_interrupted)
        if answers is None:
            return None
        reward = sum(one.result.reward for one in answers) / len(answers)
        return ValidationMetrics(
            self._session.step, -reward, {"reward": reward, **means_of(answers)}
        )

    def measure(
        self, model: WhichModel, rows: WhichRows, is_interrupted: Callable[[], bool]
    ) -> Measured | None:
        adapter = None if model == "base" else self._session.name
        answers = self._answer_heldout(adapter, is_interrupted)
        if answers is None:
            return None
        assert self._prompts is not None
        prompts, records = self._prompts
        count = self._options.eval_samples
        groups = [answers[start : start + count] for start in range(0, len(answers), count)]
        rewards = [sum(one.result.reward for one in group) / count for group in groups]
        worst = worst_rows(
            [prompts.tokens.lines[record] for record in records],
            [-reward for reward in rewards],
            expected=[msgspec.json.encode(prompts.items[one]).decode() for one in records],
            predicted=[group[0].generated.text for group in groups],
            excerpts=[
                str(self._trunk.tokenizer.decode(list(prompts.prompt_ids(record))))
                for record in records
            ],
        )
        return Measured(averages.score(reward=rewards), worst)

    def _answer_heldout(
        self, adapter: str | None, is_interrupted: Callable[[], bool]
    ) -> list[Answer] | None:
        """Return the answers to all held-out prompts, side by side; None when interrupted."""
        assert self._prompts is not None
        prompts, records = self._prompts
        count = self._options.eval_samples

        def before_step() -> None:
            if is_interrupted():
                raise _Interrupted

        asked = [
            Asked(
                prompts.prompt_ids(record),
                prompts.items[record],
                derived_seed(self._seed, "judged", record, place) if count > 1 else None,
            )
            for record in records
            for place in range(count)
        ]
        try:
            return self._rollouts.answer(asked, adapter, before_step)
        except _Interrupted:
            return None


class _Interrupted(Exception):
    """A command came in between."""
