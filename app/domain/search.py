"""The search of a sweep through Optuna: what to try next, what to give up, and when it is over.

A pure function of the rows: a study is made anew from them at each look, so that nothing but the
rows has to survive a crash, and equal rows give equal decisions. Imported by name when a sweep is
looked at, since Optuna brings NumPy.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from app.domain.metrics import METRICS
from app.domain.search_spaces import CategoricalSpace, FloatSpace, IntSpace
from app.domain.sweeps import Decision, Pruning, Search, Trial, TrialState

# Of those that reach a rung, one in so many goes on to the next, which lies so many times higher.
REDUCTION_FACTOR = 3
# As many draws are made for a combination that was not tried before.
_DRAWS = 20

_STATES = {
    TrialState.RUNNING: optuna.trial.TrialState.RUNNING,
    TrialState.SUCCEEDED: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
    TrialState.CANCELLED: optuna.trial.TrialState.FAIL,
}

# It would greet every study.
optuna.logging.set_verbosity(optuna.logging.WARNING)


def decide(
    search: Search, trials: Sequence[Trial], trained_tokens: int, seconds: float
) -> Decision:
    """Return what is to be done about a sweep.

    Args:
        trials: all of them, by number.
        trained_tokens: by all its jobs so far.
        seconds: since the sweep was created.
    """
    judged: list[tuple[int, int]] = []
    pruned: list[Pruning] = []
    known = list(trials)
    for trial in trials:
        if trial.state is not TrialState.RUNNING or len(trial.history) <= trial.judged:
            continue
        judged.append((trial.number, len(trial.history)))
        reason = _reason_to_prune(search, known, trial)
        if reason is not None:
            pruned.append(Pruning(trial.number, reason))
            known[trial.number] = replace(trial, state=TrialState.PRUNED)
    started = _to_start(search, known, trained_tokens, seconds)
    is_running = any(trial.state is TrialState.RUNNING for trial in known)
    return Decision(
        prune=tuple(pruned),
        judged=tuple(judged),
        start=tuple(started),
        is_over=not is_running and not started,
    )


def best_of(metric: str, trials: Sequence[Trial]) -> Trial | None:
    """Return the best of the trials that succeeded, the first of equals."""
    best: Trial | None = None
    for trial in trials:
        before = best.value if best is not None else None
        is_better = METRICS[metric].is_improved(before, trial.value)
        if trial.state is TrialState.SUCCEEDED and is_better:
            best = trial
    return best


def _to_start(
    search: Search, trials: list[Trial], trained_tokens: int, seconds: float
) -> list[dict[str, Any]]:
    # Whatever the budget, something is tried.
    if trials and search.budget.is_spent(trained_tokens, seconds):
        return []
    running = sum(trial.state is TrialState.RUNNING for trial in trials)
    room = min(search.max_parallel - running, search.max_distinct_trials - len(trials))
    known, started = list(trials), []
    for _ in range(room):
        parameters = _suggest(search, known)
        started.append(parameters)
        known.append(Trial(len(known), TrialState.RUNNING, parameters))
    return started


def _suggest(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the parameters of the next trial, a function of the seed and of the trials so far."""
    distributions = {path: _distribution(search, path) for path in sorted(search.spaces)}
    tried = [trial.parameters for trial in trials]
    parameters: dict[str, Any] = {}
    for draw in range(_DRAWS):
        # Each look has a sampler of its own, whose state must not depend on looks before.
        seed = random.Random(f"{search.seed}:{len(trials)}:{draw}").getrandbits(31)
        study = _study(search, trials, sampler=_sampler(search, seed))
        drawn = study.ask(distributions).params
        parameters = {path: _from_optuna(search, path, value) for path, value in drawn.items()}
        if parameters not in tried:
            break
    return parameters


def _sampler(search: Search, seed: int) -> BaseSampler:
    if search.algorithm == "grid":
        # Shuffled by the sweep's own seed: a trial's number is its place in the grid.
        places = {path: range(space.size or 0) for path, space in search.spaces.items()}
        return GridSampler(places, seed=search.seed)
    if search.algorithm == "tpe":
        # Optuna's own ten at random would leave nothing of a short sweep.
        return TPESampler(seed=seed, n_startup_trials=max(1, min(10, search.max_trials // 3)))
    return RandomSampler(seed=seed)


def _reason_to_prune(search: Search, trials: Sequence[Trial], trial: Trial) -> str | None:
    """Return why a trial is to be given up at an epoch that was not judged yet, if it is."""
    if search.pruner == "none" or _is_trained(trial) or _leads(search, trials, trial):
        return None
    for epoch in range(trial.judged + 1, len(trial.history) + 1):
        seen = replace(trial, history=trial.history[:epoch], judged=epoch - 1)
        if seen.history[-1] is None:
            continue
        others = [seen if one.number == trial.number else one for one in trials]
        study = _study(search, others)
        if _pruner(search).prune(study, study.get_trials()[trial.number]):
            return _told(search, others, seen)
    return None


def _is_trained(trial: Trial) -> bool:
    """Say whether the last epoch is over: to give up then would save nothing and lose a value."""
    return trial.num_epochs is not None and len(trial.history) >= trial.num_epochs


def _leads(search: Search, trials: Sequence[Trial], trial: Trial) -> bool:
    """Say whether none of the others that can still win has been better at any time.

    The pruners compare epochs: without this, they could give up a trial whose best epoch is behind
    it, and with it the best model of the sweep.
    """
    metric = METRICS[search.metric]
    own = _best(search, trial)
    rivals = (
        _best(search, other)
        for other in trials
        if other.number != trial.number
        and other.state in (TrialState.RUNNING, TrialState.SUCCEEDED)
    )
    return not any(metric.is_improved(own, rival) for rival in rivals)


def _best(search: Search, trial: Trial) -> float | None:
    metric, best = METRICS[search.metric], None
    for value in (*trial.history, trial.value):
        if metric.is_improved(best, value):
            best = value
    return best


def _pruner(search: Search) -> BasePruner:
    if search.pruner == "median":
        return MedianPruner(n_startup_trials=max(1, min(5, search.max_trials // 4)))
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION_FACTOR)


def _told(search: Search, trials: Sequence[Trial], trial: Trial) -> str:
    epoch = len(trial.history)
    if search.pruner == "median":
        others = [
            value
            for other in trials
            if other.state is TrialState.SUCCEEDED and len(other.history) >= epoch
            if (value := other.history[epoch - 1]) is not None
        ]
        shown = _best(search, trial)
        return (
            f"pruned by median: {search.metric} {shown:.4g} at epoch {epoch}, "
            f"median {median(others):.4g}"
        )
    rung = max(_completed_rungs(trial))
    reached = [other for other in trials if rung in _completed_rungs(other)]
    return (
        f"pruned by successive halving: {search.metric} {trial.history[-1]:.4g} at epoch {epoch} "
        f"is not among the best of the {len(reached)} that came so far, of which one in "
        f"{REDUCTION_FACTOR} goes on"
    )


def _study(
    search: Search, trials: Sequence[Trial], sampler: BaseSampler | None = None
) -> optuna.Study:
    is_higher_better = METRICS[search.metric].is_higher_better
    study = optuna.create_study(
        direction="maximize" if is_higher_better else "minimize",
        sampler=sampler or RandomSampler(seed=0),
    )
    for trial in trials:
        study.add_trial(_frozen(search, trial))
    return study


def _frozen(search: Search, trial: Trial) -> FrozenTrial:
    distributions = {path: _distribution(search, path) for path in sorted(search.spaces)}
    values = {epoch: value for epoch, value in enumerate(trial.history, 1) if value is not None}
    rungs = _completed_rungs(trial)
    if trial.state is TrialState.RUNNING:
        # The epoch that is to be judged has not completed its rung.
        rungs = {rung: at for rung, at in rungs.items() if at[0] <= trial.judged}
    return create_trial(
        state=_STATES[trial.state],
        value=trial.value if trial.state is TrialState.SUCCEEDED else None,
        params={path: _to_optuna(search, path, trial.parameters[path]) for path in distributions},
        distributions=distributions,
        intermediate_values=values,
        # By this name Optuna's pruner finds what others had where it now stands.
        system_attrs={f"completed_rung_{rung}": value for rung, (_, value) in rungs.items()},
    )


def _completed_rungs(trial: Trial) -> dict[int, tuple[int, float]]:
    """Return at which epoch, and with which value, a trial came to each rung that it reached.

    A rung lies at the end of an epoch, each so many times higher than the one before.
    """
    found: dict[int, tuple[int, float]] = {}
    for epoch, value in enumerate(trial.history, 1):
        while value is not None and epoch >= REDUCTION_FACTOR ** len(found):
            found[len(found)] = (epoch, value)
    return found


def _distribution(search: Search, path: str) -> BaseDistribution:
    space = search.spaces[path]
    if search.algorithm == "grid" or isinstance(space, CategoricalSpace):
        # Places, since Optuna's choices can be no lists or objects.
        return CategoricalDistribution(tuple(range(space.size or 0)))
    low, high = space.extremes()
    if isinstance(space, FloatSpace):
        return FloatDistribution(low, high, log=space.log, step=space.step)
    return IntDistribution(low, high, log=space.log, step=space.step)


def _to_optuna(search: Search, path: str, value: Any) -> Any:
    space = search.spaces[path]
    if isinstance(space, CategoricalSpace):
        return space.index(value)
    return space.candidates().index(value) if search.algorithm == "grid" else value


def _from_optuna(search: Search, path: str, value: Any) -> Any:
    space = search.spaces[path]
    if search.algorithm == "grid" or isinstance(space, CategoricalSpace):
        return space.candidates()[value]
    return value if isinstance(space, IntSpace) else space.snapped(value)
