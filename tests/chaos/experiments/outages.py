"""4: the broker is away while jobs are submitted. All are accepted, and run once it is back."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload


@dataclass(frozen=True)
class OutagesSize:
    jobs: int = 100
    workers: int = 2


def outages(lab: Lab, kind: Kind, size: OutagesSize) -> Outcome:
    """Kill the broker, submit every job, start the broker."""
    wanted = recipes(size.jobs, records=8, epochs=1)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        installation.wait_for_trainers(size.workers)
        nemesis = Nemesis(installation, lab.chance("outages"))
        broker = installation.backends.broker
        assert broker is not None
        broker.kill()
        nemesis.faults["kill broker"] += 1
        workload = Workload(installation)
        seconds = []
        for recipe in wanted:
            began = time.monotonic()
            workload.submit(recipe)
            seconds.append(time.monotonic() - began)
        broker.start()
        slowest = statistics.quantiles(seconds, n=100)[98]
        figures: dict[str, object] = {"p99_submit_seconds": round(slowest, 3)}
        return conclude(
            lab,
            "outages",
            workload,
            nemesis,
            within_seconds=60 + 3 * size.jobs,
            audit=lambda evidence: [*_audit(evidence), *workload.refused],
            figures=figures,
        )


def _audit(evidence: Evidence) -> Sequence[str]:
    return [
        f"{job.id} ran {job.lease_epoch} times"
        for job in evidence.jobs.values()
        if job.lease_epoch != 1
    ]
