"""1: workers and trainers are killed at random. No job is lost, none is computed twice at once."""

from dataclasses import dataclass

from tests.chaos.backends import Kind
from tests.chaos.experiments.common import conclude, keep_busy, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload


@dataclass(frozen=True)
class KillsSize:
    jobs: int = 25
    kills: int = 100
    workers: int = 4
    pause_seconds: float = 1.5


def kills(lab: Lab, kind: Kind, size: KillsSize) -> Outcome:
    """Kill a worker, a trainer or both, again and again, whenever something is computed."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("kills"))

        def fault() -> bool:
            if not nemesis.wait_for_work(within_seconds=10):
                return False
            nemesis.pause(size.pause_seconds)
            return nemesis.kill()

        workload = Workload(installation)
        keep_busy(workload, wanted, fault, size.kills)
        return conclude(lab, "kills", workload, nemesis)
