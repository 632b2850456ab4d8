"""17: a trainer hangs. Its worker notices, replaces it, and the job goes on."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis, processes_of_worker
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload
from tests.support.polling import eventually

# Longer than a trainer needs to start on a busy machine.
STALL_SECONDS = 10


@dataclass(frozen=True)
class HangsSize:
    jobs: int = 5


def hangs(lab: Lab, kind: Kind, size: HangsSize) -> Outcome:
    """Stop the trainer of each job once, and never let it go on."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    plan = Plan(workers=1, settings={"STALL_TIMEOUT_SECONDS": str(STALL_SECONDS)})
    with lab.installation(kind, plan) as installation:
        installation.start()
        installation.wait_for_trainers(1)
        nemesis = Nemesis(installation, lab.chance("hangs"))
        workload = Workload(installation)
        (worker,) = installation.workers
        for recipe in wanted:
            workload.submit(recipe)
            eventually(nemesis.wait_for_work, what="the job runs", within_seconds=60)
            for trainer in processes_of_worker(worker, "trainer"):
                trainer.send_signal(signal.SIGSTOP)
                nemesis.faults["stop trainer"] += 1
                eventually(
                    lambda trainer=trainer: not trainer.is_running(),  # type: ignore[misc]
                    what="the trainer that hangs is killed",
                    within_seconds=30,
                )
            eventually(
                lambda: installation.count_unfinished() == 0,
                what="the job has ended",
                within_seconds=60,
            )

        def audit(evidence: Evidence) -> Sequence[str]:
            return [
                f"{job.id}: {job.attempts} attempts counted"
                for job in evidence.jobs.values()
                if job.attempts != 2
            ]

        return conclude(lab, "hangs", workload, nemesis, audit=audit)
