"""An API and workers in real processes, kept running, and ended without a trace."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from app.db.database import Database
from app.db.migrations import upgrade
from app.domain.errors import Unavailable
from app.services.keys import authenticate, create_key
from tests.chaos.backends import Backends
from tests.chaos.rows import list_unfinished
from tests.chaos.slots import Keeper, Slot
from tests.support.polling import eventually
from tests.support.service import Service, environment_of, processes_of

LEASE_TTL_SECONDS = 4.0
STOP_SECONDS = 40

# Short times, so that a crash is found out about in seconds; and crashes that cost no job.
USUAL = {
    "ENGINE_URL": "http://127.0.0.1:9",
    "LEASE_TTL_SECONDS": str(LEASE_TTL_SECONDS),
    "SWEEP_INTERVAL_SECONDS": "0.2",
    "REDISPATCH_AFTER_SECONDS": "3",
    "STOP_GRACE_SECONDS": "5",
    "MAX_ATTEMPTS": "1000",
    "CHECKPOINT_INTERVAL_SECONDS": "0.5",
    "MIN_FREE_BYTES": "1",
}


@dataclass(frozen=True)
class Plan:
    """What an experiment runs on.

    Attributes:
        settings: environment variables that differ from the usual ones.
        workers: number of workers.
        worker_module: what a worker is started by.
        worker_environments: further variables of each worker; the last one counts for the rest.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    workers: int = 3
    worker_module: str = "worker"
    worker_environments: Sequence[Mapping[str, str]] = ({},)


class Installation:
    """One API and its workers; `service` speaks to them and reads their rows."""

    def __init__(self, directory: Path, backends: Backends, base: Mapping[str, str], plan: Plan):
        self.directory = directory
        self.backends = backends
        self.step_log = directory / "steps.jsonl"
        (directory / "tmp").mkdir(parents=True)
        environment = environment_of(
            directory,
            {
                **USUAL,
                **base,
                **backends.settings(),
                "STEP_LOG": str(self.step_log),
                # What crashes leave behind in it goes with the rest.
                "TMPDIR": str(directory / "tmp"),
                **plan.settings,
            },
        )
        self.service = Service(environment, "")
        with self.service.database() as database:
            upgrade(database)
            with database.write() as connection:
                key = create_key(connection, organization="acme", project="chaos", name="chaos")
            with database.read() as connection:
                self.project_id = authenticate(connection, key).project_id
        self.service = Service(environment, key)
        self.api = Slot("api", ["app", "api"], environment, directory / "api.log")
        self.workers = [
            self._worker(number, environment, plan) for number in range(1, plan.workers + 1)
        ]
        self._keeper = Keeper([self.api, *self.workers])

    @contextmanager
    def database(self) -> Iterator[Database]:
        with self.service.database() as database:
            yield database

    def start(self, *, wait: bool = True) -> None:
        """Start the API and the workers; wait for the former only."""
        self.start_api()
        for worker in self.workers:
            worker.release()
        if wait:
            self.wait_for_api()

    def start_api(self) -> None:
        self.api.release()

    def wait_for_api(self) -> None:
        eventually(self.is_api_up, what=f"the API answers; see {self.directory}", within_seconds=90)

    def is_api_up(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.service.root_url}/healthz", verify=False).status_code == 200
        return False

    def trainers(self) -> list[psutil.Process]:
        """Return the trainers whose worker lives."""
        return [trainer for worker in self.workers for trainer in worker.children()]

    def wait_for_trainers(self, number: int) -> None:
        """Wait until so many workers have a trainer."""
        eventually(
            lambda: len(self.trainers()) >= number,
            what=f"{number} trainers",
            within_seconds=120,
        )

    def stop(self) -> list[str]:
        """End everything in order; return, and kill, whatever did not end by itself."""
        self._keeper.close()
        slots = [self.api, *self.workers]
        for slot in slots:
            slot.hold()
        for process in processes_of(self.directory):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        for slot in slots:
            slot.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for slot in slots:
            slot.wait(max(0.1, deadline - time.monotonic()))
        # A child may need a moment to follow its parent.
        left = psutil.wait_procs(processes_of(self.directory), timeout=5)[1]
        return [_killed(process) for process in left]

    def kill_everything(self) -> None:
        """End every process at once, whatever state it is in."""
        self._keeper.close()
        for slot in (self.api, *self.workers):
            slot.hold()
        while left := processes_of(self.directory):
            for process in left:
                _killed(process)
            psutil.wait_procs(left, timeout=5)
        for slot in (self.api, *self.workers):
            slot.close()

    def count_unfinished(self) -> int:
        """Return how many jobs have not ended; as many as there are while nothing can be read."""
        with suppress(Unavailable), self.database() as database, database.read() as connection:
            return len(list_unfinished(connection, self.project_id))
        return 1

    def _worker(self, number: int, environment: Mapping[str, str], plan: Plan) -> Slot:
        own = plan.worker_environments[min(number, len(plan.worker_environments)) - 1]
        return Slot(
            f"worker-{number}",
            [plan.worker_module],
            {**environment, **own},
            self.directory / f"worker-{number}.log",
        )


def _killed(process: psutil.Process) -> str:
    """Kill a process and return what it was."""
    with suppress(psutil.NoSuchProcess):
        command = " ".join(process.cmdline()[1:])
        process.kill()
        return f"{process.pid} {command}"
    return f"{process.pid}"
