"""The trainer as its supervisor sees it: a warm child process at the end of two pipes.

The process of an export is seen the same way, but lives for that export alone.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

LOG_LINES_KEPT = 200
_MODULE = "worker.training.child"
_SECRETS = frozenset({"DATABASE_URL", "BROKER_URL", "ENGINE_API_KEY"})

_log = logging.getLogger("tunesmith.trainer")


def trainer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the trainer sees: no way into the database, the broker or the engine."""
    kept = {name: value for name, value in environment.items() if name not in _SECRETS}
    # Waiting threads that spin make each other late as soon as anything else wants the cores:
    # measured on two busy ones, a step is two to five times as fast when they sleep.
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept


class TrainerDied(Exception):
    """The trainer process ended.

    Attributes:
        cause: how it ended, for people: "signal SIGKILL", "exit status 1".
        log_tail: the last lines that it wrote.
    """

    def __init__(self, cause: str, log_tail: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.log_tail = log_tail


class Trainer:
    """One trainer process, started at once. Its own group, so that it can be killed as a whole.

    Args:
        module: what it runs.
    """

    def __init__(self, environment: Mapping[str, str], module: str = _MODULE) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._log_tail: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._readers = [
            threading.Thread(target=self._read_messages, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Mapping[str, Any]) -> None:
        """Send a command. A dead trainer is told of by `receive`, not here."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_seconds: float) -> dict[str, Any] | None:
        """Return the next message, or None when there is none in time.

        Raises:
            TrainerDied: the process ended and everything that it sent was received.
        """
        try:
            message = self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if message is None:
            self._messages.put(None)
            raise TrainerDied(self._cause_of_death(), self.log_tail)
        return message

    @property
    def log_tail(self) -> str:
        return "\n".join(self._log_tail)

    def kill(self) -> None:
        """Kill the whole group at once and wait for its end."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, grace_seconds: float) -> None:
        """Let the process end by itself (it does at the end of its input), then kill it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    self._messages.put(json.loads(line))
                except ValueError:
                    _log.error("unreadable message from the trainer: %.200r", line)
        self._messages.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._log_tail.append(text)
                _log.info("%s", text)

    def _cause_of_death(self) -> str:
        status = self._process.wait()
        self._readers[1].join(timeout=1)
        if status >= 0:
            return f"exit status {status}"
        with suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
        return f"signal {-status}"
