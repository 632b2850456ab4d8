"""Processes that are kept running: what an init system does, with a hold for experiments."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.service import REPOSITORY

_POLL_SECONDS = 0.05
# A process that ends at once, because its database is away, is not started in a tight loop.
_BACKOFF_SECONDS = 0.5


class Slot:
    """A place for one process, which is started again whenever it has ended, unless held.

    Attributes:
        exits: the status of every process that was here and ended.
    """

    def __init__(
        self, name: str, module: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.exits: list[int] = []
        self._command = [sys.executable, "-m", *module]
        self._environment = dict(environment)
        self._log = log
        self._lock = threading.Lock()
        self._is_held = True
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    @property
    def process(self) -> psutil.Process | None:
        """The running process, or None between two."""
        process = self._process
        if process is None or process.poll() is not None:
            return None
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(process.pid)
        return None

    def children(self) -> list[psutil.Process]:
        """Return the trainer of a worker, if it has one."""
        with suppress(psutil.NoSuchProcess):
            return self.process.children() if self.process else []
        return []

    def release(self) -> None:
        """Start a process now, and again whenever it ends."""
        self._is_held = False
        self.keep()

    def hold(self) -> None:
        """Start no process any more; the running one stays."""
        with self._lock:
            self._is_held = True

    def keep(self) -> None:
        """Start the process if there is none and it is not held."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.exits.append(self._process.returncode)
                self._close()
            is_too_soon = time.monotonic() < self._started_at + _BACKOFF_SECONDS
            if self._process is None and not self._is_held and not is_too_soon:
                self._start()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if process := self.process:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end of a held slot's process; None when it did not end in time."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_seconds) if self._process else 0
        return None

    def close(self) -> None:
        """Take leave of a held slot's process, which has ended."""
        with self._lock:
            if self._process is not None:
                self._process.wait()
                self._close()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is ours: it must not reach them as a fault.
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None


class Keeper:
    """Watches slots from a thread until it is closed."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            for slot in self._slots:
                slot.keep()
