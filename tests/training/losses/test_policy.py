"""The policy losses, their gradients, metrics and advantages, against TRL's GRPOTrainer.

Everything is float32 and agrees to 1e-6.
"""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.errors import UnknownName
from tests.training.losses.trl_trainers import (
    TOLERANCE,
    VOCAB,
    GRPOTrainer,
    TinyModel,
    assert_alike,
    tiny_model,
    trainer,
)
from worker.training.losses.log_probabilities import token_log_probabilities
from worker.training.losses.metrics import mean_metrics
from worker.training.losses.policy import (
    POLICY_LOSS_TYPES,
    REWARD_SCALES,
    PolicyLoss,
    PolicyOptions,
    PolicyTokens,
    StepTotals,
    group_advantages,
    policy_loss,
)

# TRL asks transformers for a property whose name is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEMPERATURE = 0.8
SEQUENCES, PROMPT, COMPLETION = 6, 3, 8
# The last answer has no token to learn, as one whose tokens all came from tools.
LENGTHS = (8, 1, 5, 3, 7, 0)


@pytest.fixture(scope="module")
def policy() -> TinyModel:
    return tiny_model(1, TEMPERATURE)


def round_of_answers(policy: TinyModel) -> dict[str, Tensor]:
    """Return what GRPOTrainer's loss is given, with ratios on both sides of the clipping."""
    generator = torch.Generator().manual_seed(5)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(SEQUENCES, COMPLETION, generator=generator)

    ids = torch.randint(1, VOCAB, (SEQUENCES, PROMPT + COMPLETION), generator=generator)
    mask = (torch.arange(COMPLETION) < torch.tensor(LENGTHS)[:, None]).long()
    inputs = {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(SEQUENCES, PROMPT, dtype=torch.int64),
        "completion_ids": ids[:, PROMPT:] * mask,
        "completion_mask": mask,
        "advantages": torch.tensor([1.5, -0.7, 0.2, -1.1, 0.0, 0.9]),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        values = padded_values(policy, inputs)
    return inputs | {
        "old_per_token_logps": values + noise(0.3),
        "ref_per_token_logps": values + noise(0.5),
    }


def padded_values(policy: TinyModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the log-probabilities of all tokens of the completions, [sequences, completion]."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    hidden = policy.model(input_ids=ids, attention_mask=attention_mask).last_hidden_state
    rows = hidden[:, PROMPT - 1 : -1].reshape(-1, hidden.shape[-1])
    found = token_log_probabilities(
        rows, policy.lm_head.weight, inputs["completion_ids"].reshape(-1), TEMPERATURE
    )
    return found.values.view(-1, COMPLETION)


def packed(policy: TinyModel, inputs: dict[str, Tensor]) -> PolicyTokens:
    """Return the same as this project has it: the learnt tokens one after another."""
    mask = inputs["completion_mask"].bool()
    sampled = inputs.get("old_per_token_logps")
    reference = inputs.get("ref_per_token_logps")
    return PolicyTokens(
        values=padded_values(policy, inputs)[mask],
        sampled=None if sampled is None else sampled[mask],
        reference=None if reference is None else reference[mask],
        sequence_ids=mask.nonzero()[:, 0],
        advantages=inputs["advantages"],
    )


def grpo_trainer(policy: TinyModel, options: PolicyOptions, **attributes: Any) -> Any:
    common = {
        "model": policy,
        "args": SimpleNamespace(
            delta=None,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=SEQUENCES,
            report_to=[],
            steps_per_generation=1,
            use_bias_correction_kl=False,
        ),
        "beta": options.beta,
        "current_gradient_accumulation_steps": 1,
        "epsilon_high": options.epsilon_high,
        "epsilon_low": options.epsilon_low,
        "importance_sampling_level": "token",
        "loss_type": options.loss_type,
        "max_completion_length": options.max_completion_tokens,
        "off_policy_mask_threshold": None,
        "scale_rewards": options.scale_rewards,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "_entropy_bonus_enabled": False,
    }
    return trainer(GRPOTrainer, **(common | attributes))


def whole_step(inputs: dict[str, Tensor]) -> StepTotals:
    num_tokens = int(inputs["completion_mask"].sum())
    return StepTotals(len(inputs["advantages"]), num_tokens, num_tokens)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", POLICY_LOSS_TYPES)
def test_loss_of_the_grpo_trainer(policy: TinyModel, loss_type: str, beta: float) -> None:
    options = PolicyOptions(
        loss_type=loss_type,
        epsilon_low=0.1,
        epsilon_high=0.25,
        beta=beta,
        max_completion_tokens=20,
    )
    inputs = round_of_answers(policy)
    grpo = grpo_trainer(policy, options)
    expected = grpo._compute_loss(policy, inputs)

    found = policy_loss(packed(policy, inputs), whole_step(inputs), options)

    assert_alike(found.total, expected, policy)
    assert set(mean_metrics([found.metrics])) == expected_metrics(options)
    for name, value in mean_metrics([found.metrics]).items():
        assert grpo._metrics["train"][name] == [pytest.approx(value, abs=1e-6)], name
        # Otherwise zeros would be compared with zeros.
        assert value > 0


def expected_metrics(options: PolicyOptions) -> set[str]:
    clipped = {f"clip_ratio/{which}_mean" for which in ("low", "high", "region")}
    return clipped | {"kl"} if options.beta else clipped


def test_before_the_first_update_the_policy_is_the_one_that_sampled(
    policy: TinyModel,
) -> None:
    options = PolicyOptions(loss_type="grpo")
    inputs = round_of_answers(policy)
    del inputs["old_per_token_logps"], inputs["ref_per_token_logps"]
    expected = grpo_trainer(policy, options)._compute_loss(policy, inputs)

    found = policy_loss(packed(policy, inputs), whole_step(inputs), options)

    assert_alike(found.total, expected, policy)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_accumulates_as_trl_does(policy: TinyModel, loss_type: str) -> None:
    options = PolicyOptions(loss_type=loss_type, beta=0.1, max_completion_tokens=20)
    inputs = round_of_answers(policy)
    steps_per_round = 4  # TRL counts micro-batches: here two for each of two optimizer steps.
    grpo = grpo_trainer(policy, options, current_gradient_accumulation_steps=2)
    grpo.args.steps_per_generation = steps_per_round
    parts = [
        {name: tensor[rows] if tensor.dim() else tensor for name, tensor in inputs.items()}
        for rows in (slice(0, 3), slice(3, 6))
    ]
    expected = sum(grpo._compute_loss(policy, part) for part in parts)

    num_tokens = int(inputs["completion_mask"].sum())
    totals = StepTotals(SEQUENCES, num_tokens, num_tokens / 2)
    found = [policy_loss(packed(policy, part), totals, options) for part in parts]

    assert_alike(torch.stack([one.total for one in found]).sum(), expected, policy)


@pytest.mark.parametrize("loss_type", POLICY_LOSS_TYPES)
def test_a_step_may_be_cut_up(policy: TinyModel, loss_type: str) -> None:
    options = PolicyOptions(loss_type=loss_type, beta=0.1, max_completion_tokens=20)
    inputs = round_of_answers(policy)
    totals = whole_step(inputs)

    def loss(rows: slice) -> PolicyLoss:
        part = {name: tensor[rows] if tensor.dim() else tensor for name, tensor in inputs.items()}
        return policy_loss(packed(policy, part), totals, options)

    whole, parts = loss(slice(0, 6)), [loss(slice(0, 1)), loss(slice(1, 6))]

    together = torch.stack([part.total for part in parts]).sum()
    torch.testing.assert_close(together, whole.total, **TOLERANCE)
    metrics = mean_metrics([part.metrics for part in parts])
    assert metrics == pytest.approx(mean_metrics([whole.metrics]), abs=1e-6)


def test_wants_a_reference_for_a_kl(policy: TinyModel) -> None:
    inputs = round_of_answers(policy)
    del inputs["ref_per_token_logps"]

    with pytest.raises(ValueError, match="no reference was given"):
        policy_loss(packed(policy, inputs), whole_step(inputs), PolicyOptions(beta=0.1))


class Grading(GRPOTrainer):
    """Answers every prompt with the same token, and grades as it is told."""

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        ids = [[1] for _ in prompts]
        return ids, ids, None, prompts, None, {}, None, None


def graded(rewards: Tensor, scale_rewards: str) -> tuple[Tensor, dict[str, list[float]]]:
    """Return the advantages and metrics that GRPOTrainer makes of rewards."""

    def reward(**_: Any) -> list[float | None]:
        return [None if math.isnan(value) else value for value in rewards.flatten().tolist()]

    options = PolicyOptions(scale_rewards=scale_rewards)
    made = grpo_trainer(
        tiny_model(1),
        options,
        chat_template_kwargs={},
        environment_factories=None,
        environments=None,
        log_multimodal=False,
        mask_truncated_completions=False,
        multi_objective_aggregation="sum_then_normalize",
        num_generations=rewards.shape[1],
        num_iterations=1,
        pad_to_multiple_of=None,
        reward_func_names=["reward"],
        reward_funcs=[reward],
        reward_processing_classes=[None],
        reward_weights=torch.ones(1),
        state=SimpleNamespace(global_step=0),
        tools=None,
        _is_vlm=False,
        _logs={
            "prompt": [],
            "completion": [],
            "rewards": defaultdict(list),
            "advantages": [],
            "extra": defaultdict(list),
        },
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=0),
    )
    made.__class__ = Grading
    output = made._generate_and_score_completions([{"prompt": "x"}] * rewards.numel())
    return output["advantages"].view(rewards.shape), made._metrics["train"]


NAN = math.nan
REWARDS = {
    "spread": [[0.0, 1.0, 0.5], [0.2, 0.9, 0.1], [3.0, -2.0, 7.0]],
    "one group without spread": [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]],
    "no spread at all": [[1.0, 1.0], [1.0, 1.0]],
    "ungraded": [[NAN, 1.0, 0.0], [NAN, NAN, 1.0], [NAN, NAN, NAN], [0.1, 0.2, 0.9]],
    "one answer a group": [[0.5], [0.1]],
}


@pytest.mark.parametrize("scale_rewards", REWARD_SCALES)
@pytest.mark.parametrize("name", REWARDS)
def test_advantages_of_the_grpo_trainer(name: str, scale_rewards: str) -> None:
    rewards = torch.tensor(REWARDS[name])
    expected, metrics = graded(rewards, scale_rewards)

    found = group_advantages(rewards, scale_rewards)

    torch.testing.assert_close(found.values, expected, **TOLERANCE)
    for metric in ("reward", "reward_std", "frac_reward_zero_std"):
        assert metrics[metric] == [pytest.approx(found.metrics[metric], abs=1e-6)], metric


def test_a_single_answer_has_no_spread() -> None:
    found = group_advantages(torch.tensor([[0.5]]), "batch")

    assert found.values.tolist() == [[0.0]]
    assert "reward_std" not in found.metrics


def test_names_what_there_is() -> None:
    with pytest.raises(UnknownName, match="known: batch, group, none"):
        group_advantages(torch.zeros(1, 2), "sequence")
    empty = torch.empty(0)
    with pytest.raises(UnknownName, match="known: bnpo, dapo, dr_grpo, grpo"):
        policy_loss(
            PolicyTokens(empty, None, None, empty.long(), empty),
            StepTotals(0, 0, 0),
            PolicyOptions(loss_type="cispo"),
        )
