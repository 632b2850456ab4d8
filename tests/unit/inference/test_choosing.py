from collections import Counter

from app.inference.choosing import by_preference

BASE = "smollm2-135m-instruct"
NAMES = [f"ft:{BASE}:acme:desk:{number}" for number in range(300)]


def first(engines: dict[str, int], name: str | None) -> str:
    return by_preference(engines, BASE, name)[0]


def test_a_model_has_one_engine_and_models_are_spread() -> None:
    idle = dict.fromkeys("abc", 0)
    chosen = {name: first(idle, name) for name in NAMES}
    assert chosen == {name: first(dict.fromkeys("cba", 0), name) for name in NAMES}
    assert min(Counter(chosen.values()).values()) > len(NAMES) / 3 * 0.7


def test_an_engine_that_goes_takes_only_its_own_models_along() -> None:
    before = {name: first(dict.fromkeys("abc", 0), name) for name in NAMES}
    after = {name: first(dict.fromkeys("ab", 0), name) for name in NAMES}
    assert all(after[name] == engine for name, engine in before.items() if engine != "c")


def test_an_engine_with_more_than_its_share_is_passed_over() -> None:
    favourite = first(dict.fromkeys("abc", 0), NAMES[0])
    loads = dict.fromkeys("abc", 0) | {favourite: 4}
    order = by_preference(loads, BASE, NAMES[0])
    assert order[0] != favourite
    assert order[-1] == favourite
    # A share grows with the number of all requests.
    busy = dict.fromkeys("abc", 20) | {favourite: 24}
    assert first(busy, NAMES[0]) == favourite


def test_few_requests_stay_together() -> None:
    favourite = first(dict.fromkeys("ab", 0), None)
    assert first(dict.fromkeys("ab", 0) | {favourite: 3}, None) == favourite


def test_every_engine_has_its_turn() -> None:
    assert sorted(by_preference({"a": 9, "b": 0, "c": 3}, BASE, None)) == ["a", "b", "c"]
    assert by_preference({"a": 9}, BASE, None) == ["a"]
    assert by_preference({}, BASE, None) == []
