"""16: the hosts of the workers disagree by hours about the time of day, and nobody minds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload

SHIFTS = (2 * 3600, -2 * 3600)

_PATH = Path(__file__).resolve().parents[1] / "shifted_clock"


@dataclass(frozen=True)
class ClocksSize:
    jobs: int = 12
    freezes: int = 3


def clocks(lab: Lab, kind: Kind, size: ClocksSize) -> Outcome:
    """Run jobs on workers two hours ahead and two hours behind, with a takeover now and then."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    shifted = [{"PYTHONPATH": str(_PATH), "CHAOS_CLOCK_SHIFT_SECONDS": str(s)} for s in SHIFTS]
    plan = Plan(workers=len(SHIFTS), worker_environments=shifted)
    with lab.installation(kind, plan) as installation:
        installation.start()
        installation.wait_for_trainers(len(SHIFTS))
        nemesis = Nemesis(installation, lab.chance("clocks"))
        workload = Workload(installation)
        workload.submit_all(wanted)
        for _ in range(size.freezes):
            nemesis.wait_for_work()
            nemesis.pause(1.0)
            worker = nemesis.some_computing_worker()
            if worker is not None:
                nemesis.freeze(worker, nemesis.chance.uniform(5, 7))
                nemesis.wait_until_thawed()
        return conclude(
            lab,
            "clocks",
            workload,
            nemesis,
            audit=lambda evidence: _audit(evidence, nemesis.faults["freeze"]),
        )


def _audit(evidence: Evidence, freezes: int) -> Sequence[str]:
    """Nothing but a freeze may have cost an attempt."""
    more = sum(job.lease_epoch - 1 for job in evidence.jobs.values())
    return [f"{more} attempts too many for {freezes} freezes"] if more > freezes else []
