"""Losses that learn from which answer was preferred to which, over log-probabilities of answers.

Each takes whole answers and returns one amount for each, so that a batch may be cut into
micro-batches at will: the batch's loss is their mean. What depends on the whole batch (the KL of
KTO, the number of tokens in the NLL of ORPO) is worked out before, and given.

The formulas and the names of the metrics are those of TRL 1.16.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from app.domain.registry import Registry
from worker.training.losses.answers import Preferences
from worker.training.losses.metrics import mean_metrics


@dataclass(frozen=True, slots=True)
class PreferenceOptions:
    """What to learn by, and how strongly.

    Attributes:
        loss_type: a name in `LOSS_TYPES`.
        beta: how closely the policy is held to the reference; `tau` of IPO, `lambda` of ORPO.
        label_smoothing: the share of pairs assumed to be the wrong way round, below 0.5; for
            `sigmoid` and `simpo`.
        gamma: the margin by which the chosen answer is to win; for `simpo`.
        desirable_weight: the weight of desirable answers; for `kto`.
        undesirable_weight: the weight of undesirable answers; for `kto`.
    """

    loss_type: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """What a loss comes to.

    Attributes:
        values: [pairs] float32, or [chosen + rejected] where a loss needs no pairs; carries the
            gradient. A batch's loss is the mean over all its micro-batches.
        metrics: no gradient; each [rows], to be brought together by `preference_metrics`.
    """

    values: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LossType:
    """One loss, and what it must be given.

    Attributes:
        function: the loss.
        needs_reference: `Answers.reference` on both sides.
        needs_pairs: as many chosen answers as rejected ones, each pair to the same prompt.
        needs_nll: `Preferences.chosen_nll`.
        needs_kl: `Preferences.kl`.
    """

    function: Callable[[Preferences, PreferenceOptions], PreferenceLoss]
    needs_reference: bool
    needs_pairs: bool
    needs_nll: bool = False
    needs_kl: bool = False


def preference_loss(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Return the loss that the options name. Raises: UnknownName."""
    return LOSS_TYPES[options.loss_type].function(preferences, options)


def preference_metrics(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return a batch's metrics from those of its micro-batches, under TRL's names."""
    found = mean_metrics(parts)
    if "rewards/chosen" in found and "rewards/rejected" in found:
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


def sigmoid(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Direct preference optimisation, with `label_smoothing` in its conservative form.

    Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
    Model", equation 7, https://arxiv.org/abs/2305.18290. Mitchell 2023, "A note on DPO with noisy
    preferences & relationship to IPO", https://ericmitchell.ai/cdpo.pdf.
    """
    chosen, rejected = preferences.chosen.log_ratios, preferences.rejected.log_ratios
    values = _smoothed_logistic(options.beta * (chosen - rejected), options.label_smoothing)
    return PreferenceLoss(values, _pair_metrics(preferences, chosen, rejected, options.beta))


def ipo(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Identity preference optimisation: a squared distance to a margin, which cannot run away.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", equation 17, https://arxiv.org/abs/2310.12036. As in TRL, which asked the
    authors, log-ratios are means over an answer's tokens.
    """
    chosen, rejected = preferences.chosen, preferences.rejected
    margins = chosen.log_ratios / chosen.num_tokens.clamp(min=1)
    margins = margins - rejected.log_ratios / rejected.num_tokens.clamp(min=1)
    values = (margins - 1 / (2 * options.beta)) ** 2
    metrics = _pair_metrics(preferences, chosen.log_ratios, rejected.log_ratios, options.beta)
    return PreferenceLoss(values, metrics)


def orpo(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Odds-ratio preference optimisation: supervised learning with a penalty, and no reference.

    Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model",
    equations 6 and 7, https://arxiv.org/abs/2403.07691.
    """
    nll = preferences.chosen_nll
    if nll is None:
        raise ValueError("this loss has an NLL term, and none was given")
    chosen, rejected = preferences.chosen.means, preferences.rejected.means
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    ratios = logsigmoid(log_odds)
    metrics = _pair_metrics(preferences, chosen, rejected, options.beta) | {
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
        "nll_loss": nll.detach(),
        "log_odds_ratio": ratios.detach(),
        "log_odds_chosen": log_odds.detach(),
    }
    return PreferenceLoss(nll - options.beta * ratios, metrics)


def nll_of_pairs(sums: Tensor, batch_tokens: int, batch_pairs: int) -> Tensor:
    """Return each pair's amount of ORPO's NLL, [pairs]: their mean is the mean over all tokens.

    Args:
        sums: [pairs] float32, the summed log-probabilities of each chosen sequence. TRL, like the
            authors' own program, sums over prompt and answer, all but the very first token.
        batch_tokens: the tokens in these sums, of the whole batch.
        batch_pairs: the pairs of the whole batch.
    """
    return sums * (-batch_pairs / batch_tokens)


def kto(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Kahneman-Tversky optimisation: answers that are good or bad by themselves.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 7,
    https://arxiv.org/abs/2402.01306.
    """
    kl = preferences.kl
    if kl is None:
        raise ValueError("this loss has a KL in it, and none was given")
    desirable, undesirable = preferences.chosen.log_ratios, preferences.rejected.log_ratios
    gains = options.desirable_weight * (1 - torch.sigmoid(options.beta * (desirable - kl)))
    losses = options.undesirable_weight * (1 - torch.sigmoid(options.beta * (kl - undesirable)))
    metrics = _side_metrics(preferences, desirable, undesirable, options.beta)
    return PreferenceLoss(torch.cat([gains, losses]), metrics | {"kl": kl.detach().reshape(1)})


def estimated_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """Return KTO's estimate of the KL between policy and reference, [] float32, never negative.

    Args:
        policy: [answers], summed log-probabilities of answers to other records' prompts.
        reference: [answers], the same under the reference.
    """
    return (policy - reference).mean().detach().clamp(min=0)


def simpo(preferences: Preferences, options: PreferenceOptions) -> PreferenceLoss:
    """Simple preference optimisation: means over tokens, a margin, and no reference.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    equation 6, https://arxiv.org/abs/2405.14734.
    """
    chosen, rejected = preferences.chosen.means, preferences.rejected.means
    margins = (chosen - rejected) - options.gamma / options.beta
    values = _smoothed_logistic(options.beta * margins, options.label_smoothing)
    metrics = _pair_metrics(preferences, chosen, rejected, options.beta) | {
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }
    return PreferenceLoss(values, metrics)


LOSS_TYPES: Registry[LossType] = Registry("loss type")
LOSS_TYPES.add("sigmoid", LossType(sigmoid, needs_reference=True, needs_pairs=True))
LOSS_TYPES.add("ipo", LossType(ipo, needs_reference=True, needs_pairs=True))
LOSS_TYPES.add("orpo", LossType(orpo, needs_reference=False, needs_pairs=True, needs_nll=True))
LOSS_TYPES.add("kto", LossType(kto, needs_reference=True, needs_pairs=False, needs_kl=True))
LOSS_TYPES.add("simpo", LossType(simpo, needs_reference=False, needs_pairs=True))


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """[pairs]: the logistic loss, `label_smoothing` of it for the other way round."""
    values = -logsigmoid(logits)
    if label_smoothing == 0:
        return values
    return values * (1 - label_smoothing) - logsigmoid(-logits) * label_smoothing


def _log1mexp(x: Tensor) -> Tensor:
    """[pairs]: `log(1 - exp(x))` of negative `x`, exact near 0 and far from it.

    Certainty (`x` of 0) has infinite odds, whose gradient is not a number; it counts as the
    largest probability below 1 that float32 has.
    """
    x = x.clamp(max=-torch.finfo(torch.float32).eps)
    return torch.where(x < -0.6931471805599453, (-x.exp()).log1p(), (-x.expm1()).log())


def _pair_metrics(
    preferences: Preferences, chosen: Tensor, rejected: Tensor, beta: float
) -> dict[str, Tensor]:
    is_right = chosen.detach() > rejected.detach()
    return _side_metrics(preferences, chosen, rejected, beta) | {
        "rewards/accuracies": is_right.float()
    }


def _side_metrics(
    preferences: Preferences, chosen: Tensor, rejected: Tensor, beta: float
) -> dict[str, Tensor]:
    return {
        "rewards/chosen": beta * chosen.detach(),
        "rewards/rejected": beta * rejected.detach(),
        "logps/chosen": preferences.chosen.policy.detach(),
        "logps/rejected": preferences.rejected.policy.detach(),
    }
