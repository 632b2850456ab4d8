"""Group-relative policy optimisation: learning from rewards of answers to the same prompt.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", https://arxiv.org/abs/2402.03300. The variants, their names and the names of the metrics
are those of TRL 1.16.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.registry import Registry
from worker.training.losses.log_probabilities import sum_by_segment

# Keeps a group whose rewards are all but alike from being blown up.
_STD_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What to learn by, and how strongly.

    Attributes:
        loss_type: how much each token weighs, a name in `POLICY_LOSS_TYPES`.
        scale_rewards: what advantages are divided by, a name in `REWARD_SCALES`.
        epsilon_low: how far below 1 a token's ratio to the sampling policy still counts.
        epsilon_high: how far above 1 it still counts.
        beta: weight of the KL to the reference; 0 needs no reference.
        max_completion_tokens: what every answer counts as; for `dr_grpo`.
    """

    loss_type: str = "dapo"
    scale_rewards: str = "group"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    max_completion_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Advantages:
    """How much better each answer is than its group.

    Attributes:
        values: [groups, answers] float32; 0 for an answer that has no reward.
        metrics: `reward`, `reward_std` and `frac_reward_zero_std`, the share of answers that teach
            nothing, as all of their group were alike. One that cannot be told is left out.
    """

    values: Tensor
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """The tokens of sampled answers that are learnt from, sequence after sequence.

    Attributes:
        values: [tokens] float32, log-probabilities under the policy; carries the gradient.
        sampled: [tokens] float32, the same under the policy that sampled them; None while that is
            the policy itself, before the first update from these answers.
        reference: [tokens] float32, the same under the reference; None where `beta` is 0.
        sequence_ids: [tokens] int64, whose token it is.
        advantages: [sequences] float32.
    """

    values: Tensor
    sampled: Tensor | None
    reference: Tensor | None
    sequence_ids: Tensor
    advantages: Tensor


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What one optimizer step learns from, over all its micro-batches.

    Attributes:
        num_sequences: sampled answers.
        num_tokens: their learnt tokens.
        mean_tokens: the learnt tokens of a step on average, over all the steps that share one
            round of sampling; for `dapo`. One step a round: `num_tokens`.
    """

    num_sequences: int
    num_tokens: int
    mean_tokens: float


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """What a micro-batch comes to.

    Attributes:
        total: [] float32 with gradient, the micro-batch's share: a step's loss is their sum.
        metrics: no gradient; each [tokens], to be brought together by `mean_metrics`.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Advantages:
    """Return each reward's distance from its group's mean, scaled.

    Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective",
    https://arxiv.org/abs/2503.20783, argues for `none`; Liu et al. 2025, "Part I: Tricks or
    Traps? A Deep Dive into RL for LLM Reasoning", https://arxiv.org/abs/2508.08221, for `batch`.

    Args:
        rewards: [groups, answers] float32; NaN where an answer could not be graded.
        scale_rewards: a name in `REWARD_SCALES`.

    Raises:
        UnknownName: there is no such scale.
    """
    spread, is_divided = REWARD_SCALES[scale_rewards](rewards)
    values = rewards - rewards.nanmean(dim=1, keepdim=True)
    if is_divided:
        values = values / (spread + _STD_FLOOR)
    is_flat = torch.isclose(spread, torch.zeros_like(spread)).float().mean()
    measured = torch.stack([rewards.nanmean(), _nan_std(rewards.reshape(1, -1)).squeeze(), is_flat])
    names = ("reward", "reward_std", "frac_reward_zero_std")
    metrics = dict(zip(names, measured.tolist(), strict=True))
    return Advantages(
        values.nan_to_num(nan=0.0),
        {name: value for name, value in metrics.items() if not math.isnan(value)},
    )


def policy_loss(tokens: PolicyTokens, totals: StepTotals, options: PolicyOptions) -> PolicyLoss:
    """Return a micro-batch's share of the clipped loss with its KL to the reference.

    The clipping is that of Schulman et al. 2017, "Proximal Policy Optimization Algorithms",
    https://arxiv.org/abs/1707.06347, with two bounds as in Yu et al. 2025, "DAPO: An Open-Source
    LLM Reinforcement Learning System at Scale", https://arxiv.org/abs/2503.14476. The KL is the
    estimator k3 of Schulman 2020, "Approximating KL Divergence",
    http://joschu.net/blog/kl-approx.html.

    Raises:
        UnknownName: there is no such `loss_type`.
    """
    weigh = POLICY_LOSS_TYPES[options.loss_type]
    low, high = 1 - options.epsilon_low, 1 + options.epsilon_high
    sampled = tokens.values.detach() if tokens.sampled is None else tokens.sampled
    ratios = torch.exp(tokens.values - sampled)
    advantages = tokens.advantages[tokens.sequence_ids]
    losses = -torch.min(ratios * advantages, ratios.clamp(low, high) * advantages)
    is_low = (ratios.detach() < low) & (advantages < 0)
    is_high = (ratios.detach() > high) & (advantages > 0)
    metrics = {
        "clip_ratio/low_mean": is_low.float(),
        "clip_ratio/high_mean": is_high.float(),
        "clip_ratio/region_mean": (is_low | is_high).float(),
    }
    if options.beta != 0:
        kl = _k3(tokens)
        losses = losses + options.beta * kl
        metrics["kl"] = kl.detach()
    lengths = sum_by_segment(
        torch.ones_like(losses), tokens.sequence_ids, tokens.advantages.shape[0]
    )
    weights = weigh(lengths, totals, options)
    return PolicyLoss((losses * weights[tokens.sequence_ids]).sum(), metrics)


def _k3(tokens: PolicyTokens) -> Tensor:
    """[tokens]: an estimate of the KL from samples that is never negative."""
    if tokens.reference is None:
        raise ValueError("a KL to the reference is asked for, and no reference was given")
    log_ratios = tokens.reference - tokens.values
    return log_ratios.exp() - log_ratios - 1


# From the learnt tokens of each sequence, [sequences], to the weight of each of its tokens.
TokenWeights = Callable[[Tensor, StepTotals, PolicyOptions], Tensor]


def _grpo(lengths: Tensor, totals: StepTotals, options: PolicyOptions) -> Tensor:
    """The mean over sequences of the mean over their tokens, equation 3 of the GRPO paper."""
    return 1 / (lengths.clamp(min=1) * totals.num_sequences)


def _bnpo(lengths: Tensor, totals: StepTotals, options: PolicyOptions) -> Tensor:
    """The mean over the tokens of the step.

    TRL takes the mean over those of a micro-batch. Here micro-batches are a matter of packing, on
    which no result may depend.
    """
    return torch.full_like(lengths, 1 / max(totals.num_tokens, 1))


def _dr_grpo(lengths: Tensor, totals: StepTotals, options: PolicyOptions) -> Tensor:
    """The sum over tokens by a constant, so that length earns nothing: Liu et al. 2025."""
    return torch.full_like(lengths, 1 / (totals.num_sequences * options.max_completion_tokens))


def _dapo(lengths: Tensor, totals: StepTotals, options: PolicyOptions) -> Tensor:
    """The mean over all tokens of the round of sampling: Yu et al. 2025."""
    return torch.full_like(lengths, 1 / max(totals.mean_tokens, 1))


POLICY_LOSS_TYPES: Registry[TokenWeights] = Registry("loss type")
POLICY_LOSS_TYPES.add("grpo", _grpo)
POLICY_LOSS_TYPES.add("bnpo", _bnpo)
POLICY_LOSS_TYPES.add("dr_grpo", _dr_grpo)
POLICY_LOSS_TYPES.add("dapo", _dapo)


# From rewards [groups, answers] to their spread in the same shape, and whether to divide by it.
RewardScale = Callable[[Tensor], tuple[Tensor, bool]]


def _nan_std(rewards: Tensor) -> Tensor:
    """[groups, 1]: the deviation of each group by n - 1; NaN where only one has a reward."""
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    variance = ((rewards - rewards.nanmean(dim=1, keepdim=True)) ** 2).nanmean(dim=1, keepdim=True)
    return (variance * (count / (count - 1))).sqrt()


def _group_spread(rewards: Tensor) -> Tensor:
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    return _nan_std(rewards).expand_as(rewards)


def _batch_spread(rewards: Tensor) -> Tensor:
    if rewards.numel() == 1:
        return torch.zeros_like(rewards)
    return _nan_std(rewards.reshape(1, -1)).expand_as(rewards)


REWARD_SCALES: Registry[RewardScale] = Registry("scale of rewards")
REWARD_SCALES.add("group", lambda rewards: (_group_spread(rewards), True))
REWARD_SCALES.add("batch", lambda rewards: (_batch_spread(rewards), True))
REWARD_SCALES.add("none", lambda rewards: (_group_spread(rewards), False))
