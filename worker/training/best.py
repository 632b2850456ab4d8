"""Which of a run's validations was the best, and how long ago that was."""

from collections.abc import Sequence

from app.domain.metrics import METRICS

# A metric's value after each validation: (step, value), in order; None where it is undefined.
History = Sequence[tuple[int, float | None]]


def best_step(metric: str, history: History, min_delta: float = 0.0) -> int | None:
    """Return the step of the best value, the first of equals; None if none is defined."""
    chosen: int | None = None
    best: float | None = None
    for step, value in history:
        if METRICS[metric].is_improved(best, value, min_delta if best is not None else 0.0):
            chosen, best = step, value
    return chosen


def epochs_since_best(metric: str, history: History, min_delta: float) -> int:
    """Return how many validations came after the last that improved by more than `min_delta`.

    The one before training is not waited for to improve, but is what the first must beat.
    """
    chosen = best_step(metric, history, min_delta)
    steps = [step for step, _ in history]
    return len(steps) - 1 - (steps.index(chosen) if chosen is not None else 0)
