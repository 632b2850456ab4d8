"""The whole stack as child processes of one: started, watched, restarted, and ended together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import httpx

from app.domain.errors import Unavailable
from app.lifeline import VARIABLE
from app.settings import Settings

# Name of the process, and the arguments of `python` that start it.
PROCESSES: Mapping[str, tuple[str, ...]] = {
    "api": ("-m", "app", "api"),
    "engine": ("-m", "worker.serving.server", "--exit-with-stdin"),
    "worker": ("-m", "app", "worker"),
}

RESTART_DELAY_SECONDS = 1.0
RESTART_DELAY_MAX_SECONDS = 30.0
STOP_SECONDS = 45.0
POLL_SECONDS = 0.2

Tell = Callable[[str], None]


class Interrupted(BaseException):
    """We were asked to stop, by Ctrl-C or another signal.

    Not KeyboardInterrupt: where that passes through code being compiled, as while importing,
    Python ends with the signal's status although it was caught.
    """


# Python drops what a signal raises inside a destructor: then only this remembers the signal.
_was_interrupted = threading.Event()


def raise_on_signals() -> None:
    """Raise Interrupted in the main thread on Ctrl-C, termination and a closed terminal."""
    _was_interrupted.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    started_at: float
    quick_deaths: int = 0


@dataclass
class Stack:
    """The processes of one installation.

    Args:
        environment: what the children see.
        echo: shows a line of a child's output; their logs are kept in files in any case.
        tell: shows what happens to the stack itself.
    """

    settings: Settings
    environment: Mapping[str, str]
    echo: Tell | None
    tell: Tell
    _children: dict[str, _Child] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}/v1"

    @property
    def logs(self) -> Path:
        return self.settings.data_dir / "logs"

    def start(self) -> None:
        """Start every process, and restart from now on those that die."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for name in PROCESSES:
            self._children[name] = _Child(name, self._spawn(name), time.monotonic())
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait until the API and the engine answer.

        Raises:
            Unavailable: they did not in time; the message names the logs.
        """
        deadline = time.monotonic() + timeout_seconds
        url = self.base_url.removesuffix("/v1") + "/readyz"
        while time.monotonic() < deadline:
            _raise_if_interrupted()
            with suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5, trust_env=False).json().get("engine"):
                    return
            if any(child.quick_deaths >= 3 for child in self._children.values()):
                break
            time.sleep(POLL_SECONDS)
        raise Unavailable(f"the service did not start; its logs are in {self.logs}")

    def wait(self) -> None:
        """Return once the stack is stopped."""
        while not self._stopping.wait(POLL_SECONDS):
            _raise_if_interrupted()

    def stop(self) -> None:
        """End every process: politely, then for good. Nothing is left behind."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        children = list(self._children.values())
        for child in children:
            with suppress(ProcessLookupError):
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.tell(f"{child.name} did not stop in time: killed")
            _kill_group(child.process)
            child.process.wait()

    def _spawn(self, name: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, *PROCESSES[name]],
            # The pipe is the child's lifeline: it ends with us, however we end.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self.environment, VARIABLE: "1"},
            # The terminal's Ctrl-C is for us: we stop the children in order.
            start_new_session=True,
        )
        assert process.stdout is not None
        threading.Thread(target=self._copy_log, args=(name, process.stdout), daemon=True).start()
        return process

    def _copy_log(self, name: str, output: IO[bytes]) -> None:
        with (self.logs / f"{name}.log").open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                if self.echo is not None:
                    self.echo(f"{name:7}| {line.decode(errors='replace').rstrip()}")

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for child in list(self._children.values()):
                if child.process.poll() is not None:
                    self._restart(child)

    def _restart(self, child: _Child) -> None:
        lived = time.monotonic() - child.started_at
        deaths = child.quick_deaths + 1 if lived < 10 else 0
        delay = min(RESTART_DELAY_MAX_SECONDS, RESTART_DELAY_SECONDS * 2**deaths / 2)
        self.tell(f"{child.name} ended with status {child.process.returncode}: restarting")
        _kill_group(child.process)
        if self._stopping.wait(delay):
            return
        self._children[child.name] = _Child(
            child.name, self._spawn(child.name), time.monotonic(), deaths
        )


def check_port_is_free(host: str, port: int, variable: str) -> None:
    """Raises: Unavailable, naming the variable that chooses another port."""
    if not is_port_free(host, port):
        raise Unavailable(f"port {port} is in use; choose another one with {variable}=<port>")


def is_port_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port that was only just left counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _was_interrupted.set()
    raise Interrupted


def _raise_if_interrupted() -> None:
    if _was_interrupted.is_set():
        raise Interrupted


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
