"""The search of sweeps: what any rows may lead to, and that its parts are Optuna's."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.metrics import METRICS
from app.domain.search import best_of, decide
from app.domain.search_spaces import count_combinations, spaces_of
from app.domain.sweeps import Budget, Decision, Search, Trial, TrialState

EPOCHS = 4

SPACES = {
    "rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "decay": {"type": "float", "low": 0.0, "high": 0.9, "step": 0.1},
    "rank": {"type": "int", "low": 2, "high": 64, "log": True},
    "layers": {"type": "int", "low": 1, "high": 10, "step": 4},
    "modules": {"type": "categorical", "choices": [["q"], {"a": 1}, None, True, 1, "x"]},
}
FINITE = {name: space for name, space in SPACES.items() if name in ("layers", "modules")}

algorithms = st.sampled_from(["random", "tpe", "successive_halving", "grid"])
pruners = st.sampled_from(["none", "median", "successive_halving"])
metrics = st.sampled_from(["loss", "accuracy"])
losses = st.floats(-10, 10, allow_nan=False)


def a_search(spaces: dict[str, Any] | None = None, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "spaces": spaces_of(spaces or SPACES),
        "metric": "loss",
        "algorithm": "random",
        "pruner": "none",
        "max_trials": 12,
        "max_parallel": 3,
        "seed": 7,
    }
    return Search(**values | changes)


@st.composite
def searches(draw: st.DrawFn) -> Search:
    algorithm = draw(algorithms)
    return a_search(
        FINITE if algorithm == "grid" else SPACES,
        algorithm=algorithm,
        pruner=draw(pruners),
        metric=draw(metrics),
        max_trials=draw(st.integers(1, 12)),
        max_parallel=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def look(search: Search, trials: Sequence[Trial], tokens: int = 0, seconds: float = 0) -> Decision:
    return decide(search, trials, tokens, seconds)


def carried_out(decision: Decision, trials: list[Trial]) -> list[Trial]:
    """Return the trials after what was decided is done."""
    changed = list(trials)
    for number, epochs in decision.judged:
        changed[number] = replace(changed[number], judged=epochs)
    for pruning in decision.prune:
        changed[pruning.number] = replace(changed[pruning.number], state=TrialState.PRUNED)
    for parameters in decision.start:
        changed.append(Trial(len(changed), TrialState.RUNNING, parameters))
    return changed


def some_progress(trials: list[Trial], draw: Callable[[Any], Any]) -> list[Trial]:
    """Let running trials end epochs, end, fail or be cancelled, as it happens."""
    changed = []
    for trial in trials:
        if trial.state is not TrialState.RUNNING:
            changed.append(trial)
            continue
        epochs = draw(st.integers(0, EPOCHS - len(trial.history)))
        measured = tuple(draw(st.none() | losses) for _ in range(epochs))
        trial = replace(trial, history=trial.history + measured)
        states = [TrialState.RUNNING, TrialState.FAILED, TrialState.CANCELLED]
        if len(trial.history) == EPOCHS:
            states = [TrialState.SUCCEEDED, TrialState.FAILED]
        state = draw(st.sampled_from(states))
        value = draw(losses) if state is TrialState.SUCCEEDED else None
        changed.append(replace(trial, state=state, value=value))
    return changed


@settings(max_examples=60)
@given(search=searches(), happening=st.data())
def test_whatever_happens_the_limits_hold_and_equal_rows_give_equal_decisions(
    search: Search, happening: st.DataObject
) -> None:
    trials: list[Trial] = []
    for _ in range(12):
        decision = look(search, trials)
        assert look(search, list(trials)) == decision
        leader = leading(search, trials)
        assert leader is None or leader.number not in {one.number for one in decision.prune}
        trials = carried_out(decision, trials)
        states = Counter(trial.state for trial in trials)
        assert states[TrialState.RUNNING] <= search.max_parallel
        assert len(trials) <= search.max_trials
        assert decision.is_over == (
            states[TrialState.RUNNING] == 0 and len(trials) == search.max_distinct_trials
        )
        for trial in trials:
            assert_within(search, trial.parameters)
        trials = some_progress(trials, happening.draw)


def leading(search: Search, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial that has seen the best value of those which can still win."""
    leader, best = None, None
    for trial in trials:
        if trial.state not in (TrialState.RUNNING, TrialState.SUCCEEDED):
            continue
        for value in (*trial.history, trial.value):
            if METRICS[search.metric].is_improved(best, value):
                leader, best = trial, value
    return leader


def assert_within(search: Search, parameters: dict[str, Any]) -> None:
    assert parameters.keys() == search.spaces.keys()
    for name, value in parameters.items():
        space = SPACES[name]
        if space["type"] == "categorical":
            assert any(value is one or value == one for one in space["choices"])  # type: ignore[attr-defined]
            continue
        assert space["low"] <= value <= space["high"]  # type: ignore[operator]
        assert type(value) is (int if space["type"] == "int" else float)
        if name == "layers":
            assert value in (1, 5, 9)
        if name == "decay":
            assert value in [round(0.1 * tenth, 1) for tenth in range(10)]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31 - 1),
    max_parallel=st.integers(1, 20),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_a_grid_is_covered_once(seed: int, max_parallel: int, widths: list[int]) -> None:
    spaces = {
        f"p{index}": {"type": "int", "low": 0, "high": 2 * (width - 1), "step": 2}
        for index, width in enumerate(widths)
    }
    search = a_search(
        spaces, algorithm="grid", max_trials=500, max_parallel=max_parallel, seed=seed
    )
    trials: list[Trial] = []
    while not (decision := look(search, trials)).is_over:
        trials = [
            replace(trial, state=TrialState.FAILED) for trial in carried_out(decision, trials)
        ]
    tried = [tuple(trial.parameters[f"p{i}"] for i in range(len(widths))) for trial in trials]
    grid = product(*(range(0, 2 * width, 2) for width in widths))
    assert Counter(tried) == Counter(grid)


def test_a_grid_takes_floats_by_their_step() -> None:
    decays = {"decay": {"type": "float", "low": 0.1, "high": 0.45, "step": 0.1}}
    search = a_search(decays, algorithm="grid", max_parallel=12)
    tried = sorted(parameters["decay"] for parameters in look(search, []).start)
    assert tried == [0.1, 0.2, 0.3, 0.4]


def test_a_rate_is_searched_by_its_exponent() -> None:
    rates = {"rate": SPACES["rate"]}
    search = a_search(rates, max_trials=100, max_parallel=100)
    drawn = [parameters["rate"] for parameters in look(search, []).start]
    # Half of the draws are below the geometric mean; searched evenly, one in thirty would be.
    below = sum(rate < (1e-5 * 1e-2) ** 0.5 for rate in drawn)
    assert 30 < below < 70


def test_few_combinations_are_each_tried_once_and_then_it_is_over() -> None:
    few = {"layers": {"type": "int", "low": 1, "high": 3}}
    search = a_search(few, algorithm="tpe", max_parallel=12)
    started = look(search, []).start
    assert sorted(parameters["layers"] for parameters in started) == [1, 2, 3]


def test_tpe_goes_where_it_was_good() -> None:
    rates = {"rate": {"type": "float", "low": 0.0, "high": 1.0}}
    distances = {}
    for algorithm in ("random", "tpe"):
        search = a_search(rates, algorithm=algorithm, max_trials=40, max_parallel=1)
        trials: list[Trial] = []
        while not (decision := look(search, trials)).is_over:
            (trial,) = carried_out(decision, trials)[len(trials) :]
            value = abs(trial.parameters["rate"] - 0.3)
            trials.append(replace(trial, state=TrialState.SUCCEEDED, value=value))
        late = [trial.value or 0.0 for trial in trials[20:]]
        distances[algorithm] = sum(late) / len(late)
    assert distances["tpe"] < distances["random"] / 2


def running(number: int, *history: float | None, judged: int = 0) -> Trial:
    return Trial(number, TrialState.RUNNING, PARAMETERS, None, history, judged)


def succeeded(number: int, *history: float) -> Trial:
    return Trial(number, TrialState.SUCCEEDED, PARAMETERS, min(history), history, len(history))


PARAMETERS = {"layers": 5, "modules": "x"}


def prunings(search: Search, trials: list[Trial]) -> list[tuple[int, str]]:
    return [(one.number, one.reason) for one in look(search, trials).prune]


def test_worse_than_the_median_at_the_same_epoch_is_given_up() -> None:
    search = a_search(FINITE, pruner="median")
    others = [succeeded(0, 0.8, 0.4), succeeded(1, 0.6, 0.5), succeeded(2, 0.7, 0.1)]
    # The best epoch so far counts.
    assert prunings(search, [*others, running(3, 0.7, 0.9)]) == [
        (3, "pruned by median: loss 0.7 at epoch 2, median 0.4")
    ]
    assert prunings(search, [*others, running(3, 0.75)]) == [
        (3, "pruned by median: loss 0.75 at epoch 1, median 0.7")
    ]
    assert prunings(search, [*others, running(3, 0.65)]) == []
    # Judged already, or not measured.
    assert prunings(search, [*others, running(3, 0.75, judged=1)]) == []
    assert prunings(search, [*others, running(3, None)]) == []


@pytest.mark.parametrize("pruner", ["median", "successive_halving"])
def test_what_has_run_its_last_epoch_is_kept(pruner: str) -> None:
    """It costs nothing more, and its value teaches the search."""
    search = a_search(FINITE, pruner=pruner)
    others = [succeeded(0, 0.4, 0.3), succeeded(1, 0.3, 0.2), succeeded(2, 0.2, 0.1)]
    last = running(3, 0.9)
    for num_epochs, is_pruned in ((None, True), (2, True), (1, False)):
        trials = [*others, replace(last, num_epochs=num_epochs)]
        assert bool(prunings(search, trials)) == is_pruned


def test_the_median_waits_for_a_quarter_of_the_trials() -> None:
    others = [succeeded(0, 0.5), succeeded(1, 0.5)]
    for max_trials, is_pruned in ((8, True), (12, False)):
        search = a_search(FINITE, pruner="median", max_trials=max_trials)
        assert bool(prunings(search, [*others, running(2, 0.9)])) == is_pruned


def test_what_falls_behind_at_a_rung_is_given_up() -> None:
    search = a_search(FINITE, pruner="successive_halving", max_parallel=9)
    trials = [running(0, 0.5, judged=1), running(1, 0.4, judged=1), running(2, 0.6)]
    ((number, reason),) = prunings(search, trials)
    assert number == 2
    assert reason.startswith("pruned by successive halving: loss 0.6 at epoch 1")
    # Between the rungs, which are at epochs 1, 3 and 9, nobody is judged.
    trials = [running(0, 0.5, 0.1, 0.1, judged=3), running(1, 0.4, 0.3, judged=1)]
    assert prunings(search, trials) == []
    trials[1] = running(1, 0.4, 0.3, 0.3, judged=1)
    assert [number for number, _ in prunings(search, trials)] == [1]


def test_it_prunes_as_optuna_does_in_a_study_that_lives() -> None:
    """Trials in lockstep, epoch by epoch: from rows and by Optuna's own study."""
    curves = [[0.9 - 0.07 * trial + 0.2 / epoch for epoch in range(1, 10)] for trial in range(9)]
    order = [4, 8, 0, 6, 2, 7, 1, 5, 3]
    search = a_search(FINITE, pruner="successive_halving", max_trials=9, max_parallel=9)
    study = optuna.create_study(
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    )
    asked = [study.ask() for _ in order]
    expected: dict[int, int] = {}
    found: dict[int, int] = {}
    trials = [running(number) for number in range(9)]
    for epoch in range(1, 10):
        for number, curve in enumerate(order):
            if number not in expected:
                asked[number].report(curves[curve][epoch - 1], epoch)
                if asked[number].should_prune():
                    expected[number] = epoch
            if number not in found:
                history = tuple(curves[curve][:epoch])
                trials[number] = replace(trials[number], history=history)
                decision = look(search, trials)
                trials = carried_out(decision, trials)[:9]
                found |= {one.number: epoch for one in decision.prune}
    assert found == expected
    assert 3 <= len(found) < 9


def test_past_its_budget_nothing_is_started_and_what_runs_goes_on() -> None:
    search = a_search(FINITE, budget=Budget(max_trained_tokens=100, max_seconds=60))
    assert len(look(search, [], 100, 60).start) == 3  # Something is tried.
    trials = [running(0)]
    assert len(look(search, trials, 99, 59).start) == 2
    for tokens, seconds in ((100, 0), (0, 60)):
        decision = look(search, trials, tokens, seconds)
        assert (decision.start, decision.is_over) == ((), False)
        assert look(search, [succeeded(0, 0.5)], tokens, seconds).is_over


def test_the_first_of_equals_is_the_best() -> None:
    trials = [succeeded(0, 0.5), succeeded(1, 0.4), succeeded(2, 0.4), running(3, 0.1)]
    assert best_of("loss", trials) == trials[1]
    assert best_of("accuracy", trials) == trials[0]
    assert best_of("loss", trials[3:]) is None


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"type": "float", "low": 2.0, "high": 1.0}, "not above"),
        ({"type": "float", "low": 0.0, "high": 1.0, "log": True}, "above 0"),
        ({"type": "float", "low": 1.0, "high": 2.0, "log": True, "step": 0.5}, "not both"),
        ({"type": "float", "low": 0.0, "high": float("inf")}, "finite"),
        ({"type": "int", "low": 2, "high": 1}, "not above"),
        ({"type": "int", "low": 0, "high": 4, "log": True}, "above 0"),
        ({"type": "int", "low": 1, "high": 4, "log": True, "step": 2}, "not both"),
        ({"type": "int", "low": 1.5, "high": 4}, "integer"),
        ({"type": "categorical", "choices": []}, "at least 1"),
        ({"type": "categorical", "choices": [1, 2, 1]}, "there twice"),
        ({"type": "normal", "mean": 0}, "normal"),
    ],
)
def test_a_space_that_is_none_is_refused(space: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spaces_of({"p": space})


def test_combinations_are_counted() -> None:
    assert count_combinations(spaces_of(FINITE)) == 18
    assert count_combinations(spaces_of(SPACES)) is None
