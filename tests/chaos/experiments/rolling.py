"""15: workers are told to stop, one after the other, again and again. Nothing is computed twice."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.backends import Kind
from tests.chaos.checker import count_repeats
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, keep_busy, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload
from tests.support.polling import eventually

EXIT_SECONDS = 30.0


@dataclass(frozen=True)
class RollingSize:
    jobs: int = 12
    restarts: int = 30
    workers: int = 3
    pause_seconds: float = 1.0


def rolling(lab: Lab, kind: Kind, size: RollingSize) -> Outcome:
    """Send SIGTERM to a worker, wait for its end, let it be replaced, and so on."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    slowest = 0.0
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("rolling"))

        def restart() -> bool:
            nonlocal slowest
            if not nemesis.wait_for_work(within_seconds=10):
                return False
            nemesis.pause(size.pause_seconds)
            worker = nemesis.some_computing_worker()
            if worker is None or (process := worker.process) is None:
                return False
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
            nemesis.faults["SIGTERM worker"] += 1
            eventually(lambda: not process.is_running(), what="the worker ended", within_seconds=60)
            slowest = max(slowest, time.monotonic() - asked)
            return True

        workload = Workload(installation)
        keep_busy(workload, wanted, restart, size.restarts)

        def audit(evidence: Evidence) -> Sequence[str]:
            exits = [code for worker in installation.workers for code in worker.exits]
            return [
                *(
                    f"{job.id}: {job.attempts} attempts counted"
                    for job in evidence.jobs.values()
                    if job.attempts != 1
                ),
                *(f"a worker ended with status {code}" for code in exits if code != 0),
                *(["steps were repeated"] if count_repeats(evidence.steps).repeated else []),
                *([f"an end took {slowest:.0f} s"] if slowest > EXIT_SECONDS else []),
            ]

        figures: dict[str, object] = {"slowest_exit_seconds": round(slowest, 1)}
        return conclude(lab, "rolling", workload, nemesis, audit=audit, figures=figures)
