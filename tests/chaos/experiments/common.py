"""What experiments have in common: filling the queue, waiting for its end, and judging."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import cycle

from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, gather
from tests.chaos.installation import Installation
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import SEEDS, Recipe, Workload
from tests.support.polling import eventually


def recipes(number: int = len(SEEDS), **fields: int) -> list[Recipe]:
    """Return so many recipes, which repeat when the seeds are used up."""
    seeds: Iterator[int] = cycle(SEEDS)
    return [Recipe(next(seeds), **fields) for _ in range(number)]


def keep_busy(
    workload: Workload, wanted: Sequence[Recipe], fault: Callable[[], bool], number: int
) -> None:
    """Make so many faults while jobs run: the wanted ones, and more if those are not enough."""
    workload.submit_all(wanted)
    more = cycle(wanted)
    made = 0
    while made < number:
        if workload.installation.count_unfinished() == 0:
            workload.submit_all([next(more) for _ in range(3)])
        made += fault()


def as_control(outcome: Outcome, is_caught: bool, missed: str) -> Outcome:
    """Turn an outcome around: it passes when the checker has caught what was done."""
    return replace(outcome, violations=() if is_caught else [missed], is_control=True)


def finish(installation: Installation, within_seconds: float) -> bool:
    """Wait until every job has ended; False when some have not, which the checker will tell."""
    try:
        eventually(
            lambda: installation.count_unfinished() == 0,
            what="every job has ended",
            within_seconds=within_seconds,
            every_seconds=0.3,
        )
    except AssertionError:
        return False
    return True


def conclude(
    lab: Lab,
    name: str,
    workload: Workload,
    nemesis: Nemesis,
    *,
    within_seconds: float = 120,
    audit: Callable[[Evidence], Sequence[str]] = lambda _: (),
    figures: dict[str, object] | None = None,
    may_fail: Collection[str] = (),
    may_repeat: bool = False,
) -> Outcome:
    """Wait for the jobs, stop the installation, and judge what is left of it all."""
    installation = workload.installation
    nemesis.wait_until_thawed()
    finish(installation, within_seconds)
    left = installation.stop()
    evidence = gather(installation, list(workload.accepted), left)
    return Outcome(
        experiment=name,
        installation=installation.backends.kind,
        faults=nemesis.faults,
        verdict=check(evidence, lab.references, may_fail=may_fail, may_repeat=may_repeat),
        violations=audit(evidence),
        figures=figures or {},
    )
