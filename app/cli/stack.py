"""The whole stack as child processes of one: started, watched, restarted, and ended together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import httpx

from app.domain.errors import Unavailable
from app.lifeline import VARIABLE
from app.settings import Settings

_ENGINE = ("-m", "worker.serving.server", "--exit-with-stdin")

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
_signals_are_held = threading.Event()


def raise_on_signals() -> None:
    """Raise Interrupted in the main thread on Ctrl-C, termination and a closed terminal."""
    _was_interrupted.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def programs(settings: Settings) -> "list[Program]":
    """Return what an installation on one machine consists of."""
    ports = range(settings.engine_port, settings.engine_port + settings.engines)
    engines = [
        Program(
            name="engine" if len(ports) == 1 else f"engine-{number}",
            arguments=_ENGINE,
            environment={"ENGINE_PORT": str(port)},
        )
        for number, port in enumerate(ports, start=1)
    ]
    return [
        Program("api", ("-m", "app", "api")),
        *engines,
        Program("worker", ("-m", "app", "worker")),
    ]


@dataclass(frozen=True, slots=True)
class Program:
    """A process to run.

    Attributes:
        arguments: of `python`.
        environment: what it sees besides what all see.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Child:
    """A running program; or one that has died, and is started again at a moment."""

    program: Program
    process: subprocess.Popen[bytes]
    started_at: float
    quick_deaths: int = 0
    restart_at: float | None = None

    @property
    def name(self) -> str:
        return self.program.name


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
        for program in programs(self.settings):
            # A child that an interruption keeps from being noted would never be stopped.
            with _signals_held():
                self._children[program.name] = self._spawn(program)
            _raise_if_interrupted()
        with _signals_held():
            self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
            self._watcher.start()
        _raise_if_interrupted()

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
        # A second Ctrl-C must not cut short the one thing that leaves nothing behind.
        with _signals_held():
            self._stop()

    def _stop(self) -> None:
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

    def _spawn(self, program: Program, quick_deaths: int = 0) -> _Child:
        process = subprocess.Popen(
            [sys.executable, *program.arguments],
            # The pipe is the child's lifeline: it ends with us, however we end.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self.environment, **program.environment, VARIABLE: "1"},
            # The terminal's Ctrl-C is for us: we stop the children in order.
            start_new_session=True,
        )
        assert process.stdout is not None
        threading.Thread(
            target=self._copy_log, args=(program.name, process.stdout), daemon=True
        ).start()
        return _Child(program, process, time.monotonic(), quick_deaths)

    def _copy_log(self, name: str, output: IO[bytes]) -> None:
        with (self.logs / f"{name}.log").open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                if self.echo is not None:
                    self.echo(f"{name:8}| {line.decode(errors='replace').rstrip()}")

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for child in list(self._children.values()):
                if child.restart_at is not None:
                    self._restart_if_due(child, child.restart_at)
                elif child.process.poll() is not None:
                    self._bury(child)

    def _bury(self, child: _Child) -> None:
        """Note when a child is to be started again; the others are watched meanwhile."""
        lived = time.monotonic() - child.started_at
        child.quick_deaths = child.quick_deaths + 1 if lived < 10 else 0
        delay = RESTART_DELAY_SECONDS * 2**child.quick_deaths / 2
        child.restart_at = time.monotonic() + min(RESTART_DELAY_MAX_SECONDS, delay)
        self.tell(f"{child.name} ended with status {child.process.returncode}: restarting")
        _kill_group(child.process)

    def _restart_if_due(self, child: _Child, due_at: float) -> None:
        if time.monotonic() >= due_at:
            self._children[child.name] = self._spawn(child.program, child.quick_deaths)


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
    if not _signals_are_held.is_set():
        raise Interrupted


@contextmanager
def _signals_held() -> Iterator[None]:
    """Only remember the signals that come meanwhile."""
    _signals_are_held.set()
    try:
        yield
    finally:
        _signals_are_held.clear()


def _raise_if_interrupted() -> None:
    if _was_interrupted.is_set():
        raise Interrupted


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
