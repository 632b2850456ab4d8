"""2: everything at once: kills, freezes, lost messages, a broker and a database that crash."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

from tests.chaos.backends import Kind
from tests.chaos.experiments.common import conclude, keep_busy, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload

BROKER_DOWN_SECONDS = 3.0
POSTGRES_DOWN_SECONDS = 2.0


@dataclass(frozen=True)
class StormsSize:
    """`others` are the faults that are no kill of a worker or trainer."""

    jobs: int = 25
    kills: int = 100
    others: int = 30
    workers: int = 4
    pause_seconds: float = 1.5


def storms(lab: Lab, kind: Kind, size: StormsSize) -> Outcome:
    """Kill workers and trainers, with some other fault after every few kills."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("storms"))
        others = cycle(_others(nemesis))
        every = max(1, size.kills // max(1, size.others))
        kills = 0

        def fault() -> bool:
            nonlocal kills
            if not nemesis.wait_for_work(within_seconds=10):
                return False
            nemesis.pause(size.pause_seconds)
            if not nemesis.kill():
                return False
            kills += 1
            if kills % every == 0:
                next(others)()
            return True

        workload = Workload(installation)
        keep_busy(workload, wanted, fault, size.kills)
        return conclude(lab, "storms", workload, nemesis, within_seconds=180)


def _others(nemesis: Nemesis) -> list[Callable[[], None]]:
    """Return the faults that an installation can be made to suffer, in the order of their turns."""

    def freeze() -> None:
        worker = nemesis.some_worker()
        if worker is not None:
            nemesis.freeze(worker, nemesis.chance.uniform(2, 9))

    backends = nemesis.installation.backends
    if backends.broker is None or backends.postgres is None:
        return [freeze, nemesis.kill_api]
    return [
        freeze,
        nemesis.flush_broker,
        lambda: nemesis.crash_broker(BROKER_DOWN_SECONDS),
        freeze,
        lambda: nemesis.crash_postgres(POSTGRES_DOWN_SECONDS),
        nemesis.kill_api,
    ]
