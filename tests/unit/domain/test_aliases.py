import math
import random
from collections import Counter

import pytest

from app.domain.aliases import Shadow, Target, check_targets, choose
from app.domain.errors import InvalidInput

USERS = [f"user-{number}" for number in range(10_000)]


def shares(targets: list[Target], alias_id: str = "alias-1") -> dict[str, str]:
    """Return the version of every user."""
    return {user: choose(targets, alias_id, user) for user in USERS}


def is_likely(count: int, of: int, share: float) -> bool:
    """Say whether a count lies within four standard deviations of what a share makes likely."""
    return abs(count - of * share) < 4 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("weights", [(1, 1), (95, 5), (0.5, 0.3, 0.2), (1000, 1, 999)])
def test_users_are_shared_out_by_weight(weights: tuple[float, ...]) -> None:
    targets = [Target(f"version-{n}", weight) for n, weight in enumerate(weights)]
    counts = Counter(shares(targets).values())
    for target in targets:
        assert is_likely(counts[target.model], len(USERS), target.weight / sum(weights))
    # The control: another share than its own would be seen.
    assert not is_likely(counts["version-0"], len(USERS), weights[0] / sum(weights) * 0.9)


def test_requests_without_a_user_are_shared_out_by_weight() -> None:
    random.seed(1)
    targets = [Target("a", 9), Target("b", 1)]
    counts = Counter(choose(targets, "alias-1", None) for _ in range(10_000))
    assert is_likely(counts["b"], 10_000, 0.1)


def test_a_user_keeps_a_version() -> None:
    targets = [Target("a", 1), Target("b", 1)]
    assert shares(targets) == shares(targets)
    assert shares(targets) == shares(targets[::-1])


def test_only_the_needed_share_of_users_moves() -> None:
    before = shares([Target("a", 95), Target("b", 5)])
    after = shares([Target("a", 90), Target("b", 10)])
    moved = [user for user in USERS if before[user] != after[user]]
    assert {after[user] for user in moved} == {"b"}
    assert is_likely(len(moved), len(USERS), 0.05)


def test_a_new_version_takes_from_all_and_no_others_move() -> None:
    before = shares([Target("a", 1), Target("b", 1)])
    after = shares([Target("a", 1), Target("b", 1), Target("c", 1)])
    moved = {after[user] for user in USERS if before[user] != after[user]}
    assert moved == {"c"}
    assert is_likely(Counter(after.values())["c"], len(USERS), 1 / 3)


def test_aliases_share_out_users_independently() -> None:
    """Or the same users would always be the ones who try what is new."""
    targets = [Target("a", 1), Target("b", 1)]
    one, other = shares(targets), shares(targets, "alias-2")
    assert is_likely(sum(one[user] == other[user] for user in USERS), len(USERS), 0.5)


def test_a_weight_of_nothing_gets_nothing() -> None:
    targets = [Target("a", 0), Target("b", 1)]
    assert set(shares(targets).values()) == {"b"}
    assert {choose(targets, "alias-1", None) for _ in range(100)} == {"b"}


@pytest.mark.parametrize(
    ("targets", "shadow", "param"),
    [
        ([Target("a", 1), Target("b", 1), Target("a", 2)], None, "targets[2].model"),
        ([Target("a", 0), Target("b", 0)], None, "targets"),
        ([Target("a", 1)], Shadow("a", 1, False), "shadow.model"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(
    targets: list[Target], shadow: Shadow | None, param: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_targets(targets, shadow)
    assert refused.value.param == param
