"""The choice of a token from logits."""

import math
from collections import Counter

import pytest
import torch

from worker.generation.sampling import Sampler, SamplingParameters, score

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draws(parameters: SamplingParameters, count: int = 2000) -> Counter[int]:
    sampler = Sampler(parameters)
    return Counter(sampler.sample(LOGITS).token_id for _ in range(count))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draws(SamplingParameters(temperature=0.0), 5) == {0: 5}


def test_draws_follow_the_distribution() -> None:
    counts = draws(SamplingParameters(seed=1), 4000)
    for token_id, expected in enumerate(LOGITS.exp().tolist()):
        assert counts[token_id] / 4000 == pytest.approx(expected, abs=0.03)


def test_temperature_sharpens() -> None:
    counts = draws(SamplingParameters(temperature=0.5, seed=1), 4000)
    squares = LOGITS.exp() ** 2
    assert counts[0] / 4000 == pytest.approx(float(squares[0] / squares.sum()), abs=0.03)


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert draws(SamplingParameters(temperature=1e-30, seed=1), 5) == {0: 5}


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.01, {0}), (0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.96, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, expected: set[int]) -> None:
    assert set(draws(SamplingParameters(top_p=top_p, seed=3))) == expected


def test_a_nucleus_wider_than_the_guess_is_still_exact() -> None:
    flat = torch.zeros(8000)
    sampler = Sampler(SamplingParameters(top_p=0.999, seed=5))
    drawn = {sampler.sample(flat).token_id for _ in range(200)}
    # From a flat distribution 200 draws of 7992 tokens hardly ever meet.
    assert len(drawn) > 180


def test_a_seed_repeats_the_draws_and_another_changes_them() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingParameters(seed=seed))
        return [sampler.sample(LOGITS).token_id for _ in range(50)]

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("top_p", [1.0, 0.99])
def test_a_seed_gives_the_same_where_the_last_bits_differ(top_p: float) -> None:
    """As they do between a sequence alone and one beside others: many tokens are all but equal."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20_000, generator=generator)
    rounded = logits + torch.randn(20_000, generator=generator) * 1e-6
    one, other = (Sampler(SamplingParameters(seed=11, top_p=top_p)) for _ in range(2))

    for _ in range(300):
        assert one.sample(logits).token_id == other.sample(rounded).token_id


def test_without_a_seed_draws_differ() -> None:
    assert [Sampler(SamplingParameters()).sample(torch.zeros(1000)) for _ in range(4)] != [
        Sampler(SamplingParameters()).sample(torch.zeros(1000)) for _ in range(4)
    ]


def test_logit_bias_forbids_and_forces() -> None:
    assert 0 not in draws(SamplingParameters(logit_bias={0: -100.0}, seed=1))
    assert draws(SamplingParameters(logit_bias={3: 100.0}, seed=1), 50) == {3: 50}


def test_presence_penalty_counts_once_and_frequency_penalty_each_time() -> None:
    logits = torch.tensor([1.0, 0.0])
    presence = Sampler(SamplingParameters(temperature=0.0, presence_penalty=0.9))
    assert [presence.sample(logits).token_id for _ in range(4)] == [0, 0, 0, 0]
    frequency = Sampler(SamplingParameters(temperature=0.0, frequency_penalty=0.6))
    # Token 0 stands at 1.0, 0.4, then -0.2 and loses to 0.0, which then falls to -0.6.
    assert [frequency.sample(logits).token_id for _ in range(4)] == [0, 0, 1, 0]


def test_logprobs_are_the_models_own() -> None:
    parameters = SamplingParameters(temperature=0.1, logit_bias={0: -100.0}, top_logprobs=2)
    token = Sampler(parameters).sample(LOGITS)
    assert token.token_id == 1
    assert token.logprob == pytest.approx(math.log(0.3), abs=1e-5)
    assert [token_id for token_id, _ in token.top] == [0, 1]
    assert token == score(LOGITS, 1, 2)


def test_output_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="finite"):
        Sampler(SamplingParameters()).sample(torch.tensor([0.0, math.nan]))
