"""An installation in real processes, started for tests and ended without a trace."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
from openai import OpenAI

from app.db.database import Database, open_database
from app.db.repositories.adapters import Adapter
from app.lifeline import VARIABLE as LIFELINE
from app.services.keys import authenticate, create_key
from app.settings import Settings, load_settings
from app.storage import open_storage
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.polling import eventually
from tests.support.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]

# What the processes inherit: their settings come from the tests alone.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_STOP_SECONDS = 60
_LOG_TAIL_CHARACTERS = 4_000

# How the arguments of each process begin, after the interpreter's name.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "api": ("-m", "app", "api"),
    "engine": ("-m", "worker.serving.server"),
    "worker": ("-m", "worker"),
    "trainer": ("-m", "worker.training.child"),
    "exporter": ("-m", "worker.exporting"),
}


@dataclass(frozen=True)
class Service:
    """A running installation.

    Attributes:
        environment: what its processes were started with.
        key: of its project "default".
    """

    environment: Mapping[str, str]
    key: str

    @property
    def data_dir(self) -> Path:
        return Path(self.environment["TUNESMITH_DATA_DIR"])

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['API_PORT']}"

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    @property
    def settings(self) -> Settings:
        """What its processes read from their environment."""
        return load_settings(self.environment)

    def client(self, key: str | None = None) -> OpenAI:
        """Return the unmodified client of OpenAI's users; the caller closes it."""
        return OpenAI(base_url=self.base_url, api_key=key or self.key, max_retries=0, timeout=120)

    def http(self, key: str | None) -> httpx.Client:
        """Return a client that shows each answer as it came; the caller closes it."""
        return httpx.Client(
            base_url=self.root_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=120,
            # Nothing is encrypted here, and reading certificates takes longer than most tests.
            verify=False,
        )

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Open the installation's database past its API."""
        database = open_database(self.settings.database_url)
        yield database
        database.engine.dispose()

    def new_key(self, project: str) -> str:
        """Make a key, and its project if that is new."""
        with self.database() as database, database.write() as connection:
            return create_key(connection, organization="acme", project=project, name="test")

    def project_of(self, key: str) -> str:
        """Return the id of the project that a key belongs to."""
        with self.database() as database, database.read() as connection:
            return authenticate(connection, key).project_id

    def tunesmith(self, *arguments: str) -> str:
        """Run the `tunesmith` command on this installation and return what it printed."""
        return _tunesmith(self.environment, *arguments)

    def processes(self) -> list[psutil.Process]:
        """Return every process of the installation, whoever its parent is now."""
        return processes_of(self.data_dir)

    def pid(self, name: str) -> int:
        """Return the process id of one that `_ARGUMENTS` names, once it runs."""
        return eventually(
            lambda: _pid_of(name, self.processes()), what=f"there is a process {name}"
        )

    def kill(self, name: str) -> None:
        """End a process as a crash does, and wait until it is gone."""
        process = psutil.Process(self.pid(name))
        process.send_signal(signal.SIGKILL)
        # It stays a zombie until its parent asks for its status.
        eventually(
            lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE,
            what=f"{name} is dead",
        )


@contextmanager
def running_service(command: str, data_dir: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """Run `tunesmith <command>` until the block ends; then none of its processes may be left.

    Args:
        command: `up` for every process, `api` for that one alone.
        settings: environment variables that differ from the tests' usual ones.
    """
    environment = environment_of(data_dir, settings)
    arguments = ["up", "--quiet"] if command == "up" else [command]
    log_path = data_dir / "output.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wanted = "engine" if command == "up" else "database"
        _wait_until_ready(process, environment["API_PORT"], wanted, data_dir)
        key = _tunesmith(environment, "keys", "create", "--name", "tests").strip()
        yield Service(environment, key)
    finally:
        left = _stop(process, data_dir)
    assert left == [], f"processes were left behind: {left}"


def serve_adapter(
    service: Service,
    key: str,
    name: str | None = None,
    *,
    task: str = "text-generation",
    files: Mapping[str, bytes] = MappingProxyType({"adapter_config.json": b"{}"}),
) -> Adapter:
    """Put a fine-tuned model of a key's project where a worker would, and return its row."""
    project = service.project_of(key)
    with service.database() as database, database.write() as connection:
        adapter = add_adapter(
            connection,
            project,
            name or f"ft:{BASE_MODEL}:acme:desk:{secrets.token_hex(6)}",
            task=task,
        )
    storage = open_storage(service.settings.storage_url)
    scratch = storage.scratch()
    for file_name, content in files.items():
        (scratch / file_name).write_bytes(content)
    storage.publish(adapter.storage_prefix, scratch)
    return adapter


def environment_of(data_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what the processes of an installation in a directory are started with."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        "TUNESMITH_DATA_DIR": str(data_dir),
        "API_PORT": str(free_port()),
        "ENGINE_PORT": str(free_port()),
        "TUNESMITH_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        LIFELINE: "1",
        **settings,
    }


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Return the processes that were started with this data directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            is_ours = process.environ().get("TUNESMITH_DATA_DIR") == str(data_dir)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", port: str, wanted: str, data_dir: Path
) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, f"it ended with status {process.returncode}"
        with suppress(httpx.HTTPError):
            url = f"http://127.0.0.1:{port}/readyz"
            return bool(httpx.get(url, timeout=5, verify=False).json()[wanted])
        return False

    try:
        eventually(is_ready, what="the service is ready", within_seconds=120)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_log_tails(data_dir)}") from None


def _stop(process: "subprocess.Popen[bytes]", data_dir: Path) -> list[Any]:
    """End the service politely; return, and kill, whatever is left of it after that."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    # A child may need a moment to follow its parent.
    left = psutil.wait_procs(processes_of(data_dir), timeout=5)[1]
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return left


def _tunesmith(environment: Mapping[str, str], *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _pid_of(name: str, processes: list[psutil.Process]) -> int | None:
    wanted = list(_ARGUMENTS[name])
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.cmdline()[1 : 1 + len(wanted)] == wanted:
                return process.pid
    return None


def _log_tails(data_dir: Path) -> str:
    logs = [data_dir / "output.log", *sorted((data_dir / "logs").glob("*.log"))]
    return "\n".join(
        f"--- {log.name}\n{log.read_text(errors='replace')[-_LOG_TAIL_CHARACTERS:]}"
        for log in logs
        if log.exists()
    )
