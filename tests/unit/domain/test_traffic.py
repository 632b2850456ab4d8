import random

import pytest

from app.domain.alias_report import Record, compare
from app.domain.intervals import Sums
from app.domain.traffic import Durations, Observation, Tally


def tally_of(*observations: Observation) -> Tally:
    tally = Tally()
    for one in observations:
        tally.add(one)
    return tally


def some(count: int, seed: int) -> list[Observation]:
    drawn = random.Random(seed)
    return [
        Observation(
            drawn.choice(["answered", "answered", "failed", "refused", "cancelled"]),
            drawn.expovariate(2.0),
            drawn.randrange(100),
            drawn.randrange(100),
            drawn.choice([None, 0.25]),
        )
        for _ in range(count)
    ]


def test_only_what_was_answered_has_a_duration_and_tokens() -> None:
    tally = tally_of(
        Observation("answered", 0.5, 9, 4, 0.25),
        Observation("failed", 9.0, 9, 4, 9.0),
        Observation("refused", 9.0),
        Observation("cancelled", 9.0),
    )
    assert (tally.requests, tally.answered) == (4, 1)
    assert (tally.failed, tally.refused, tally.cancelled) == (1, 1, 1)
    assert (tally.prompt_tokens, tally.completion_tokens) == (9, 4)
    assert (tally.durations.total, tally.first_tokens.total) == (0.5, 0.25)


def test_the_sum_of_tallies_is_the_tally_of_all() -> None:
    one, other = some(100, 1), some(50, 2)
    merged = tally_of(*one)
    merged.merge(tally_of(*other))
    whole = tally_of(*one, *other)
    assert merged.durations.total == pytest.approx(whole.durations.total)
    assert merged.durations.histogram == whole.durations.histogram
    assert merged.requests == whole.requests == 150
    assert Tally.of_json(merged.as_json()) == merged
    assert Tally.of_json({}) == Tally()


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_quantiles_are_right_to_within_a_twentieth(share: float) -> None:
    drawn = random.Random(3)
    seconds = sorted(drawn.lognormvariate(-1, 1.5) for _ in range(2_000))
    durations = Durations()
    for one in seconds:
        durations.add(one)
    found = durations.quantile(share)
    assert found == pytest.approx(seconds[round(share * 2_000) - 1], rel=0.05)


def test_no_durations_have_no_quantiles_and_none_is_too_short() -> None:
    assert Durations().quantile(0.5) is None
    durations = Durations()
    durations.add(0.0)
    assert durations.quantile(0.5) is not None


def record(model: str, mean: float, count: int = 200, failed: int = 0) -> Record:
    tally = tally_of(
        *(Observation("answered", mean + 0.1 * (n % 3 - 1)) for n in range(count)),
        *(Observation("failed", 1.0) for _ in range(failed)),
    )
    # Scores whose mean and variance are as of 0 and 1 in these shares.
    return Record(model, 1, tally, Sums(count, count * mean, count * mean))


def test_a_verdict_is_given_where_the_interval_says_so() -> None:
    one, other = record("a", 0.5), record("b", 0.8, failed=40)
    found = {each.measure: each for each in compare([one, other], one)}
    assert found["latency_seconds"].verdict == "worse"
    assert found["error_rate"].verdict == "worse"
    assert found["feedback"].verdict == "better"
    assert found["feedback"].difference.value == pytest.approx(0.3)
    assert found["first_token_seconds"].verdict == "too_few"
    assert "mean feedback of b is higher by 0.3" in found["feedback"].text
    assert "200 and 200 scores: better." in found["feedback"].text
    # The control: the other way around everything is the other way around.
    swapped = {each.measure: each.verdict for each in compare([one, other], other)}
    assert swapped["feedback"] == "worse"
    assert swapped["latency_seconds"] == swapped["error_rate"] == "better"


def test_what_is_alike_is_not_told_apart() -> None:
    one, other = record("a", 0.5), record("b", 0.5)
    verdicts = {each.measure: each.verdict for each in compare([one, other], one)}
    assert verdicts["feedback"] == verdicts["latency_seconds"] == "undecided"
    assert verdicts["error_rate"] == "undecided"
