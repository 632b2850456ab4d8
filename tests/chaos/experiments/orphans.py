"""3b: no sweeper runs when a worker dies. Its job must be reported as lost by the checker."""

from dataclasses import dataclass

from tests.chaos.backends import Kind
from tests.chaos.experiments.common import as_control, conclude, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis, processes_of_worker
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload
from tests.support.polling import eventually


@dataclass(frozen=True)
class OrphansSize:
    """How long the checker waits for the job that nobody brings back: many leases."""

    wait_seconds: float = 20.0


def orphans(lab: Lab, kind: Kind, size: OrphansSize) -> Outcome:
    """Take the sweeper away with its API, kill worker and trainer mid-job, start a new worker."""
    wanted = recipes(1)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=1)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("orphans"))
        workload = Workload(installation)
        workload.submit_all(wanted)
        eventually(nemesis.wait_for_work, what="the job runs", within_seconds=120)
        installation.api.hold()
        nemesis.kill_api()
        (worker,) = installation.workers
        nemesis.kill_processes("both", processes_of_worker(worker, "both"))
        outcome = conclude(
            lab, "control: no sweeper", workload, nemesis, within_seconds=size.wait_seconds
        )
    verdict = outcome.verdict
    assert verdict is not None
    return as_control(outcome, len(verdict.lost) == 1, "the lost job was not reported")
