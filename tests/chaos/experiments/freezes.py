"""2b and 3a: workers freeze for longer than their lease lasts, while others are idle.

With the fences a frozen trainer takes no step once it thaws; without them the checker must see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.chaos.backends import Kind
from tests.chaos.evidence import read_steps
from tests.chaos.experiments.common import as_control, conclude, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Freeze, Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Recipe, Workload
from worker.training.step_log import StepLine

MIN_SECONDS, MAX_SECONDS = 7.0, 12.0

# Long, so that a thawed trainer would find its successor still at work.
RECORDS, EPOCHS = 64, 5


@dataclass(frozen=True)
class FreezesSize:
    """`takeovers` is the least number that must happen while a worker is frozen."""

    freezes: int = 8
    takeovers: int = 5
    workers: int = 4
    epochs: int = EPOCHS


def freezes(lab: Lab, kind: Kind, size: FreezesSize) -> Outcome:
    """Freeze workers at work; idle ones take over, and no zombie computes."""
    return _freeze(lab, kind, size, name="freezes", module="worker")


def unfenced(lab: Lab, kind: Kind, size: FreezesSize) -> Outcome:
    """The same with every fence removed: passes when the checker finds zombies."""
    outcome = _freeze(lab, kind, size, name="control: unfenced", module="tests.chaos.unfenced")
    verdict = outcome.verdict
    assert verdict is not None
    is_caught = bool(verdict.zombie_steps and verdict.overlaps)
    return as_control(outcome, is_caught, "no zombie step was seen")


def takeovers(lines: Sequence[StepLine], frozen: Sequence[Freeze]) -> int:
    """Count the freezes during which a later attempt at the frozen one's job began a step."""
    count = 0
    for freeze in frozen:
        before = [x for x in lines if x.pid in freeze.pids and x.time <= freeze.began]
        if before:
            last = before[-1]
            count += any(
                x.job == last.job
                and x.epoch > last.epoch
                and x.phase == "begin"
                and freeze.began < x.time < freeze.ended
                for x in lines
            )
    return count


def _freeze(lab: Lab, kind: Kind, size: FreezesSize, *, name: str, module: str) -> Outcome:
    wanted: list[Recipe] = recipes(2, records=RECORDS, epochs=size.epochs)
    lab.refer(wanted)
    plan = Plan(workers=size.workers, worker_module=module)
    with lab.installation(kind, plan) as installation:
        installation.start()
        installation.wait_for_trainers(size.workers)
        nemesis = Nemesis(installation, lab.chance(name))
        workload = Workload(installation)
        workload.submit_all(wanted)
        while len(nemesis.freezes) < size.freezes:
            if installation.count_unfinished() < len(wanted):
                workload.submit(wanted[len(workload.accepted) % len(wanted)])
            nemesis.wait_for_work(within_seconds=20)
            nemesis.pause(1.0)
            worker = nemesis.some_computing_worker()
            if worker is not None:
                nemesis.freeze(worker, nemesis.chance.uniform(MIN_SECONDS, MAX_SECONDS))
            if nemesis.frozen_now() >= min(len(wanted), size.workers - 2):
                nemesis.wait_until_thawed()
        nemesis.wait_until_thawed()
        outcome = conclude(lab, name, workload, nemesis)
        happened = takeovers(read_steps(installation.step_log), nemesis.freezes)
    too_few = [f"only {happened} takeovers"] if happened < size.takeovers else []
    return replace(outcome, violations=too_few, figures={"takeovers": happened})
