"""Every preference loss, its gradient and its metrics, against TRL's trainers.

Both sides start from the same token ids and the same model: TRL pads and sums, we take the rows
that matter. Everything is float32, and losses and gradients agree to 1e-6. Metrics, differences of
sums of about 20, agree to 1e-5.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.errors import UnknownName
from tests.training.losses.trl_losses import dpo_loss, halves, kto_loss, orpo_loss, sides
from tests.training.losses.trl_trainers import (
    TOLERANCE,
    VOCAB,
    CPOTrainer,
    Padded,
    TinyModel,
    assert_alike,
    pad,
    tiny_model,
    trainer,
)
from worker.training.losses.answers import Answers, Preferences
from worker.training.losses.log_probabilities import sum_by_segment, token_log_probabilities
from worker.training.losses.preference import (
    LOSS_TYPES,
    PreferenceLoss,
    PreferenceOptions,
    estimated_kl,
    nll_of_pairs,
    preference_loss,
    preference_metrics,
)

# TRL asks transformers for a property whose name is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PAIRS = 4
METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
PAIR_METRICS = (*METRICS, "rewards/accuracies", "logps/chosen", "logps/rejected")


def sequences(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, answer) pairs of several lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(fewest: int, most: int) -> list[int]:
        length = int(torch.randint(fewest, most + 1, (1,), generator=generator))
        found: list[int] = torch.randint(1, VOCAB, (length,), generator=generator).tolist()
        return found

    return [(tokens(2, 5), tokens(1, 6)) for _ in range(count)]


def pairs() -> Padded:
    """Return chosen and then rejected answers to the same prompts."""
    chosen, others = sequences(1, PAIRS), sequences(2, PAIRS)
    prompts = [prompt for prompt, _ in chosen]
    rejected = [(prompt, answer) for prompt, (_, answer) in zip(prompts, others, strict=True)]
    return pad(chosen + rejected)


@pytest.fixture(scope="module")
def policy() -> TinyModel:
    return tiny_model(1)


@pytest.fixture(scope="module")
def reference() -> TinyModel:
    return tiny_model(2)


def answer_sums(model: TinyModel, batch: Padded, mask: Tensor) -> Tensor:
    """Return the summed log-probabilities of the masked tokens of each sequence."""
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    rows = mask[:, 1:].bool()
    values = token_log_probabilities(
        hidden.last_hidden_state[:, :-1][rows], model.lm_head.weight, batch.input_ids[:, 1:][rows]
    ).values
    return sum_by_segment(values, rows.nonzero()[:, 0], len(batch.input_ids))


def answers(
    policy: TinyModel, reference: TinyModel | None, batch: Padded, is_chosen: Tensor
) -> tuple[Answers, Answers]:
    """Return the chosen and the other answers."""
    sums = answer_sums(policy, batch, batch.completion_mask)
    num_tokens = batch.completion_mask.sum(dim=1)
    of_reference = None
    if reference is not None:
        with torch.no_grad():
            of_reference = answer_sums(reference, batch, batch.completion_mask)

    def take(which: Tensor) -> Answers:
        return Answers(
            sums[which], num_tokens[which], None if of_reference is None else of_reference[which]
        )

    return take(is_chosen), take(~is_chosen)


def is_first_half(batch: Padded) -> Tensor:
    return torch.arange(len(batch.input_ids)) < len(batch.input_ids) // 2


def assert_same_metrics(found: PreferenceLoss, expected: Any, names: tuple[str, ...]) -> None:
    metrics = preference_metrics([found.metrics])
    for name in names:
        (value,) = expected[name] if isinstance(expected[name], list) else [expected[name]]
        assert metrics[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_losses_of_the_dpo_trainer(
    policy: TinyModel, reference: TinyModel, loss_type: str, beta: float
) -> None:
    batch = pairs()
    expected, dpo = dpo_loss(policy, reference, batch, loss_type, beta)

    chosen, rejected = answers(policy, reference, batch, is_first_half(batch))
    options = PreferenceOptions(loss_type=loss_type, beta=beta)
    found = preference_loss(Preferences(chosen, rejected), options)

    assert_alike(found.values.mean(), expected, policy)
    assert_same_metrics(found, dpo._metrics["train"], PAIR_METRICS)


def test_conservative_dpo(policy: TinyModel, reference: TinyModel) -> None:
    # TRL's DPO has lost its label smoothing; its CPO, given log-ratios, is the same formula.
    batch = pairs()
    chosen, rejected = answers(policy, reference, batch, is_first_half(batch))
    cpo = trainer(CPOTrainer, alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=0.2)
    expected, _, _ = cpo.cpo_loss(chosen.log_ratios, rejected.log_ratios)

    options = PreferenceOptions(beta=0.3, label_smoothing=0.2)
    found = preference_loss(Preferences(chosen, rejected), options)

    torch.testing.assert_close(found.values, expected, **TOLERANCE)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), policy.probe, retain_graph=True)
    (gradient,) = torch.autograd.grad(found.values.sum(), policy.probe)
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)


def test_loss_of_the_orpo_trainer(policy: TinyModel) -> None:
    batch = pairs()
    expected, expected_metrics = orpo_loss(policy, *halves(batch), beta=0.3)

    is_chosen = is_first_half(batch)
    chosen, rejected = answers(policy, None, batch, is_chosen)
    # The NLL is over the whole chosen sequence, but for its first token.
    sums = answer_sums(policy, batch, batch.attention_mask)[is_chosen]
    num_tokens = int(batch.attention_mask[is_chosen, 1:].sum())
    found = preference_loss(
        Preferences(chosen, rejected, chosen_nll=nll_of_pairs(sums, num_tokens, PAIRS)),
        PreferenceOptions(loss_type="orpo", beta=0.3),
    )

    assert_alike(found.values.mean(), expected, policy)
    own = ("nll_loss", "log_odds_ratio", "log_odds_chosen")
    assert_same_metrics(found, expected_metrics, (*PAIR_METRICS, *own))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_simpo_of_the_cpo_trainer(policy: TinyModel, label_smoothing: float) -> None:
    batch = pairs()
    cpo = trainer(
        CPOTrainer,
        alpha=0.0,
        beta=2.0,
        cpo_alpha=0.0,
        label_smoothing=label_smoothing,
        loss_type="simpo",
        pad_token_id=0,
        simpo_gamma=0.7,
    )
    expected, expected_metrics = cpo.get_batch_loss_metrics(policy, sides(*halves(batch)))

    chosen, rejected = answers(policy, None, batch, is_first_half(batch))
    options = PreferenceOptions(
        loss_type="simpo", beta=2.0, gamma=0.7, label_smoothing=label_smoothing
    )
    found = preference_loss(Preferences(chosen, rejected), options)

    assert_alike(found.values.mean(), expected, policy)
    assert_same_metrics(found, expected_metrics, PAIR_METRICS)


@pytest.mark.parametrize("label", [[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_loss_of_the_kto_trainer(
    policy: TinyModel, reference: TinyModel, label: list[int], is_swapped: bool
) -> None:
    # The KL of one direction is positive and that of the other is cut off at 0.
    model, other = (reference, policy) if is_swapped else (policy, reference)
    given = sequences(3, 5)
    shifted = [given[-1], *given[:-1]]
    mismatched = [(prompt, answer) for (prompt, _), (_, answer) in zip(given, shifted, strict=True)]
    batch, mismatch = pad(given), pad(mismatched)
    weights = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    expected, kto = kto_loss(model, other, batch, mismatch, torch.tensor(label), **weights)

    desirable, undesirable = answers(model, other, batch, torch.tensor(label).bool())
    with torch.no_grad():
        kl = estimated_kl(
            answer_sums(model, mismatch, mismatch.completion_mask),
            answer_sums(other, mismatch, mismatch.completion_mask),
        )
    options = PreferenceOptions(loss_type="kto", **weights)
    found = preference_loss(Preferences(desirable, undesirable, kl=kl), options)

    assert_alike(found.values.mean(), expected, model)
    measured = kto._metrics["train"]
    names = [name for name in (*METRICS, "kl", "logps/chosen", "logps/rejected") if measured[name]]
    assert_same_metrics(found, measured, tuple(names))
    assert set(preference_metrics([found.metrics])) == set(names)


def test_the_kl_of_kto_is_positive_in_one_direction_only(
    policy: TinyModel, reference: TinyModel
) -> None:
    # Without this the test above would not see whether the KL is cut off at 0.
    batch = pad(sequences(3, 5))
    with torch.no_grad():
        one = answer_sums(policy, batch, batch.completion_mask)
        other = answer_sums(reference, batch, batch.completion_mask)

    assert {float(estimated_kl(one, other)) > 0, float(estimated_kl(other, one)) > 0} == {
        True,
        False,
    }
    assert 0.0 in {float(estimated_kl(one, other)), float(estimated_kl(other, one))}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_may_be_cut_up(loss_type: str) -> None:
    generator = torch.Generator().manual_seed(4)

    def some() -> Answers:
        sums = -10 * torch.rand(6, generator=generator)
        lengths = torch.randint(1, 9, (6,), generator=generator)
        return Answers(sums, lengths, sums + torch.randn(6, generator=generator))

    def part(answers: Answers, rows: slice) -> Answers:
        assert answers.reference is not None
        return Answers(answers.policy[rows], answers.num_tokens[rows], answers.reference[rows])

    chosen, rejected, nll = some(), some(), torch.rand(6, generator=generator)
    options = PreferenceOptions(loss_type=loss_type, label_smoothing=0.1)
    kl = torch.tensor(0.3)
    whole = preference_loss(Preferences(chosen, rejected, nll, kl), options)
    parts = [
        preference_loss(
            Preferences(part(chosen, rows), part(rejected, rows), nll[rows], kl), options
        )
        for rows in (slice(0, 1), slice(1, 6))
    ]

    together = sum(one.values.sum() for one in parts) / whole.values.numel()
    torch.testing.assert_close(together, whole.values.mean(), **TOLERANCE)
    metrics = preference_metrics([one.metrics for one in parts])
    assert metrics == pytest.approx(preference_metrics([whole.metrics]), abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_what_a_loss_declares_to_need_it_needs(loss_type: str) -> None:
    declared = LOSS_TYPES[loss_type]
    bare = Answers(torch.tensor([-1.0]), torch.tensor([2]))
    full = Answers(bare.policy, bare.num_tokens, torch.tensor([-2.0]))
    one = torch.ones(1)
    options = PreferenceOptions(loss_type=loss_type)

    def works(answers: Answers, nll: Tensor | None, kl: Tensor | None) -> bool:
        try:
            preference_loss(Preferences(answers, answers, nll, kl), options)
        except ValueError:
            return False
        return True

    assert works(full, one, one[0])
    assert works(bare, one, one[0]) is not declared.needs_reference
    assert works(full, None, one[0]) is not declared.needs_nll
    assert works(full, one, None) is not declared.needs_kl
    more = Answers(torch.ones(3), torch.ones(3), torch.ones(3))
    if not declared.needs_pairs:
        assert preference_loss(Preferences(full, more, one, one[0]), options).values.shape == (4,)


def test_orpo_survives_certainty() -> None:
    # TRL's gradient is not a number here: an answer of one token of which the model is sure.
    sure = torch.zeros(1, requires_grad=True)
    unsure = torch.full((1,), -3.0, requires_grad=True)
    length = torch.ones(1, dtype=torch.int64)
    options = PreferenceOptions(loss_type="orpo")

    loss = preference_loss(
        Preferences(Answers(sure, length), Answers(unsure, length), chosen_nll=-sure), options
    )
    loss.values.sum().backward()  # type: ignore[no-untyped-call]

    assert torch.isfinite(loss.values).all()
    assert sure.grad is not None
    assert unsure.grad is not None
    assert torch.isfinite(sure.grad).all()
    assert torch.isfinite(unsure.grad).all()


def test_names_the_losses_that_there_are() -> None:
    nothing = Answers(torch.empty(0), torch.empty(0))

    with pytest.raises(UnknownName, match="known: ipo, kto, orpo, sigmoid, simpo"):
        preference_loss(Preferences(nothing, nothing), PreferenceOptions(loss_type="hinge"))
