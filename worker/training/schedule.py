"""The learning rate over a run."""

import math

from app.domain.job_spec import Scheduler


def learning_rate_factor(
    step: int, total_steps: int, scheduler: Scheduler, warmup_ratio: float
) -> float:
    """Return the share of the peak learning rate that a step uses.

    No step is wasted on a rate of zero: the warm-up starts above it, and the decay reaches it
    only after the last step.

    Args:
        step: 1 to `total_steps`.
        total_steps: of the whole run.
        scheduler: shape of the decay after the warm-up.
        warmup_ratio: share of the steps, rounded down, over which the rate rises linearly.
    """
    warmup_steps = int(warmup_ratio * total_steps)
    if step <= warmup_steps:
        return step / (warmup_steps + 1)
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    match scheduler:
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            return 1.0
