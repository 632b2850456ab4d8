"""What goes wrong: kills, freezes and crashes, chosen by a seeded stream of chance."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import psutil

from tests.chaos.evidence import read_steps
from tests.chaos.installation import Installation
from tests.chaos.slots import Slot
from tests.support.polling import eventually

# Longer than a step takes on a busy machine.
_RECENTLY_SECONDS = 0.5

VICTIMS = ("worker", "trainer", "both")


@dataclass(frozen=True)
class Freeze:
    """Processes that were stopped, and the moments of `time.monotonic()` between which."""

    pids: frozenset[int]
    began: float
    ended: float


class Nemesis:
    """Makes faults in one installation and counts them.

    Attributes:
        faults: how many of each kind were made.
        freezes: every freeze that was made; `ended` may still lie ahead.
    """

    def __init__(self, installation: Installation, chance: Random) -> None:
        self.installation = installation
        self.chance = chance
        self.faults: Counter[str] = Counter()
        self.freezes: list[Freeze] = []
        self._thawing: list[threading.Timer] = []

    def wait_for_work(self, within_seconds: float = 60) -> bool:
        """Wait until something is computed; False when nothing was in time."""
        size = self._log_size()
        with suppress(AssertionError):
            eventually(
                lambda: self._log_size() > size,
                what="a step",
                within_seconds=within_seconds,
                every_seconds=0.02,
            )
            return True
        return False

    def pause(self, at_most_seconds: float) -> None:
        time.sleep(self.chance.uniform(0, at_most_seconds))

    def kill(self) -> bool:
        """Kill a worker, its trainer or both; False when there was none to kill."""
        victim = self.chance.choice(VICTIMS)
        worker = self.some_worker()
        if worker is None:
            return False
        return self.kill_processes(victim, processes_of_worker(worker, victim))

    def kill_processes(self, name: str, processes: Sequence[psutil.Process]) -> bool:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.faults[f"kill {name}"] += bool(processes)
        return bool(processes)

    def kill_api(self) -> None:
        self.installation.api.signal(signal.SIGKILL)
        self.faults["kill api"] += 1

    def flush_broker(self) -> None:
        broker = self.installation.backends.broker
        assert broker is not None
        broker.flush()
        self.faults["FLUSHALL"] += 1

    def crash_broker(self, down_seconds: float) -> None:
        """Kill the broker and start it anew after a while."""
        broker = self.installation.backends.broker
        assert broker is not None
        broker.kill()
        self.faults["kill broker"] += 1
        time.sleep(down_seconds)
        broker.start()

    def crash_postgres(self, down_seconds: float) -> None:
        """End Postgres without a checkpoint and let it recover after a while."""
        postgres = self.installation.backends.postgres
        assert postgres is not None
        postgres.crash()
        self.faults["crash Postgres"] += 1
        time.sleep(down_seconds)
        postgres.start()

    def freeze(self, worker: Slot, seconds: float) -> None:
        """Stop a worker and its trainer for a while, without waiting for the end of it."""
        frozen = processes_of_worker(worker, "both")
        began = time.monotonic()
        _signal_all(frozen, signal.SIGSTOP)
        self.faults["freeze"] += 1
        pids = frozenset(process.pid for process in frozen)
        self.freezes.append(Freeze(pids, began, began + seconds))
        timer = threading.Timer(seconds, _signal_all, [frozen, signal.SIGCONT])
        timer.daemon = True
        timer.start()
        self._thawing.append(timer)

    def frozen_now(self) -> int:
        return sum(timer.is_alive() for timer in self._thawing)

    def wait_until_thawed(self) -> None:
        for timer in self._thawing:
            timer.join()
        self._thawing.clear()

    def later(self, seconds: float, action: Callable[[], None]) -> threading.Timer:
        """Do something after a while; the caller joins it."""
        timer = threading.Timer(seconds, action)
        timer.start()
        return timer

    def some_worker(self) -> Slot | None:
        """Return a worker that has a trainer, or at least runs."""
        workers = self.installation.workers
        choices = [w for w in workers if w.children()] or [w for w in workers if w.process]
        return self.chance.choice(choices) if choices else None

    def some_computing_worker(self) -> Slot | None:
        """Return a worker whose trainer has logged something within the last moment."""
        since = time.monotonic() - _RECENTLY_SECONDS
        pids = {x.pid for x in read_steps(self.installation.step_log) if x.time >= since}
        choices = [
            worker
            for worker in self.installation.workers
            if any(trainer.pid in pids for trainer in worker.children())
        ]
        return self.chance.choice(choices) if choices else None

    def _log_size(self) -> int:
        path = self.installation.step_log
        return path.stat().st_size if path.exists() else 0


def processes_of_worker(worker: Slot, which: str) -> list[psutil.Process]:
    """Return the `worker` process, its `trainer`, or `both`."""
    # The trainer first: one without a supervisor is no child of it any more.
    trainers = worker.children() if which != "worker" else []
    supervisor = worker.process if which != "trainer" else None
    return [*([supervisor] if supervisor else []), *trainers]


def _signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
