"""The learning rate over a run."""

from itertools import pairwise

import pytest

from app.domain.job_spec import Scheduler
from worker.training.schedule import learning_rate_factor


def factors(scheduler: Scheduler, total_steps: int, warmup_ratio: float) -> list[float]:
    return [
        learning_rate_factor(step, total_steps, scheduler, warmup_ratio)
        for step in range(1, total_steps + 1)
    ]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
def test_no_step_is_wasted_and_the_peak_is_reached(scheduler: Scheduler, total_steps: int) -> None:
    found = factors(scheduler, total_steps, 0.1)

    assert all(0 < factor <= 1 for factor in found)
    assert max(found) == 1


def test_warm_up_rises_by_equal_parts() -> None:
    assert factors("constant", 20, 0.2)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_decay_falls_towards_zero(scheduler: Scheduler) -> None:
    found = factors(scheduler, 50, 0.0)

    assert all(later < earlier for earlier, later in pairwise(found))
    assert found[-1] < 0.03


def test_linear_decay_by_hand() -> None:
    assert factors("linear", 4, 0.0) == [1.0, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_in_the_middle() -> None:
    assert factors("cosine", 4, 0.0)[2] == pytest.approx(0.5)
