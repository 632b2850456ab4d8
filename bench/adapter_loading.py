"""From a job's success to the first token of its model: ours through the API, and PEFT's load.

A real API and a real engine serve adapters that nobody has asked for yet. Of each, the time to the
first token of its first answer is taken, and the median of three more answers to prompts of the
same length: what the first one takes beyond that is the load. After each of ours, PEFT loads the
same files into a model that it has in memory. One thread each.

Beside the time that passes, the processor time of the API and the engine is taken, which a busy
machine shifts less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.base_models import InstalledBaseModel, ensure_installed, load_catalogue
from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec, LoraSpec
from app.resources import Resources
from app.settings import load_settings
from tests.support.factories import add_adapter
from tests.support.service import Service, environment_of
from worker.training.manifest import BaseModelRef, Origin, chat_template
from worker.trunk.device import DeviceProfile
from worker.trunk.listing import write_listing
from worker.trunk.loading import load_trunk
from worker.trunk.lora import LoraAdapter, LoraPair, new_adapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

BASE_MODEL = "smollm2-135m-instruct"
CPU = DeviceProfile("cpu", "float32", 1)
START_SECONDS = 300.0
# Of the prompts: the first is that of a model's first call.
WORDS = ("rain", "snow", "wind", "heat")


@dataclass(frozen=True)
class Timing:
    """Seconds of one adapter.

    Attributes:
        wall: that passed.
        processor: of the API's and the engine's threads.
    """

    wall: float
    processor: float


@dataclass(frozen=True)
class Calls:
    """The first call of an adapter, and the median of later ones."""

    first: Timing
    warm: Timing

    @property
    def load(self) -> Timing:
        return Timing(self.first.wall - self.warm.wall, self.first.processor - self.warm.processor)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    base = _base()
    trunk = load_trunk(base.directory, CPU)
    with tempfile.TemporaryDirectory() as directory:
        service, models = _installation(Path(directory), base, trunk, arguments)
        peer = _Peer(base, service, models[0])
        ours, again, theirs = list[Calls](), list[Calls](), list[Timing]()
        with _running(service) as pids, httpx.Client(base_url=service.root_url) as client:
            # The first is PEFT's own first, and warms everything up.
            for name in models:
                ours.append(_ask(client, service.key, name, pids))
                theirs.append(peer.load(name))
            # Nothing has changed, but the engine has let each go for others.
            again = [_ask(client, service.key, name, pids) for name in models[1:]]
    print(f"{len(models) - 1} adapters, LoRA r={arguments.rank} on seven modules, medians in ms:")
    print(f"  {'':52} {'time':>22} {'processor':>22}")
    _show("first call of a new model, beyond prefill", [one.load for one in ours[1:]])
    _show("the same, to its first token", [one.first for one in ours[1:]])
    _show("later calls, to the first token", [one.warm for one in ours[1:]])
    _show("call of a model that made room, beyond prefill", [one.load for one in again])
    _show("PEFT's load_adapter", theirs[1:])
    for what in ("wall", "processor"):
        our, their = (
            statistics.median(getattr(one, what) for one in timings)
            for timings in ([one.load for one in ours[1:]], theirs[1:])
        )
        print(f"PEFT's {what} time to ours: {their / our:.1f}x")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


class _Peer:
    """PEFT with one adapter in memory, as a server that loads further ones by hand."""

    def __init__(self, base: InstalledBaseModel, service: Service, first: str) -> None:
        self._directories = _directories(service)
        model: Any = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
        self._model = PeftModel.from_pretrained(model, str(self._directories[first]), "first")

    def load(self, name: str) -> Timing:
        """Return what passes until an adapter is loaded and chosen."""
        started, worked = time.perf_counter(), time.process_time()
        self._model.load_adapter(str(self._directories[name]), "next")
        self._model.set_adapter("next")
        timing = Timing(time.perf_counter() - started, time.process_time() - worked)
        self._model.set_adapter("first")
        self._model.delete_adapter("next")
        return timing


def _ask(client: httpx.Client, key: str, name: str, pids: Sequence[int]) -> Calls:
    first, *later = (_first_token(client, key, name, word, pids) for word in WORDS)
    walls, processors = ([getattr(one, what) for one in later] for what in ("wall", "processor"))
    return Calls(first, Timing(statistics.median(walls), statistics.median(processors)))


def _first_token(
    client: httpx.Client, key: str, name: str, word: str, pids: Sequence[int]
) -> Timing:
    # The words differ from the first on, so that no prefix of a prompt is computed already.
    messages = [{"role": "system", "content": word}, {"role": "user", "content": f"Why {word}?"}]
    body = {"model": name, "messages": messages, "max_completion_tokens": 1, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    started, worked = time.perf_counter(), _processor_seconds(pids)
    with client.stream(
        "POST", "/v1/chat/completions", json=body, headers=headers, timeout=120
    ) as response:
        response.raise_for_status()
        events = response.iter_raw()
        next(events)
        timing = Timing(time.perf_counter() - started, _processor_seconds(pids) - worked)
        for _ in events:
            pass
    return timing


def _processor_seconds(pids: Sequence[int]) -> float:
    """Return what all threads of some processes have used, to the nanosecond."""
    threads = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def _installation(
    directory: Path, base: InstalledBaseModel, trunk: Trunk, arguments: argparse.Namespace
) -> tuple[Service, list[str]]:
    """Return an installation with fine-tuned models, and their names."""
    environment = environment_of(
        directory,
        {
            "MODELS_DIR": str(_models_dir()),
            "ENGINE_PRELOAD": BASE_MODEL,
            # So few that at the second call of each it has made room for others.
            "ENGINE_MAX_ADAPTERS": "4",
            "ENGINE_ADAPTER_SLOTS": "2",
        },
    )
    environment["ENGINE_URL"] = f"http://127.0.0.1:{environment['ENGINE_PORT']}"
    service = Service(environment, "")
    service = Service(environment, service.tunesmith("keys", "create").strip())
    project = service.project_of(service.key)
    resources = Resources(load_settings(environment))
    names = []
    for number in range(arguments.rounds + 1):
        name = f"ft:{BASE_MODEL}:bench:load:{number}"
        with resources.database.write() as connection:
            adapter = add_adapter(connection, project, name)
        scratch = resources.storage.scratch()
        _write(scratch / "adapter", base, trunk, arguments.rank, number)
        resources.storage.publish(adapter.checkpoint_prefix, scratch)
        names.append(name)
    resources.database.engine.dispose()
    return service, names


def _directories(service: Service) -> dict[str, Path]:
    root = Path(service.settings.storage_url.removeprefix("file://"))
    with service.database() as database, database.read() as connection:
        rows = connection.exec_driver_sql("SELECT name, storage_prefix FROM adapters").all()
    return {name: root / prefix for name, prefix in rows}


def _write(directory: Path, base: InstalledBaseModel, trunk: Trunk, rank: int, seed: int) -> None:
    """Write an adapter as training does."""
    directory.mkdir()
    spec = LoraSpec(r=rank, alpha=rank)
    adapter = _random(new_adapter(trunk.model, spec, seed), seed)
    save_adapter(directory, adapter, base.name)
    job = JobSpec(
        job_id="ftjob-bench",
        base_model=base.id,
        method="supervised",
        training_file=DatasetRef("file-bench", "files/file-bench", "0" * 64, 1),
        validation_file=None,
        start_from=None,
        seed=seed,
        hyperparameters=Hyperparameters(1, 1, 1e-4, 128),
        adapter=AdapterSpec.of_lora(spec),
    )
    reference = BaseModelRef(
        id=base.id,
        directory=str(base.directory),
        revision=base.revision,
        name_or_path=base.name,
    )
    Origin(job, reference, trunk.directory, CPU, chat_template(trunk)).write(directory, 1)
    write_listing(directory.parent)


def _random(adapter: LoraAdapter, seed: int) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        path: LoraPair(pair.a, torch.randn(pair.b.shape, generator=generator) * 0.01)
        for path, pair in adapter.weights.items()
    }
    return LoraAdapter(adapter.spec, weights)


@contextmanager
def _running(service: Service) -> Iterator[list[int]]:
    """Run the API and an engine until the block ends, and yield their process ids."""
    commands = (["-m", "app", "api"], ["-m", "worker.serving.server"])
    with (service.data_dir / "output.log").open("wb") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=service.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            for command in commands
        ]
    try:
        _wait_until_ready(service)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def _wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{service.root_url}/readyz", timeout=5).json()["engine"]:
                return
        time.sleep(0.2)
    log = (service.data_dir / "output.log").read_text(errors="replace")
    raise SystemExit(f"the service did not start:\n{log[-4000:]}")


def _base() -> InstalledBaseModel:
    catalogue = load_catalogue(_models_dir() / "no-catalogue-of-its-own.toml")
    return ensure_installed(catalogue.get(BASE_MODEL), _models_dir())


def _models_dir() -> Path:
    return load_settings(os.environ).models_dir


def _show(what: str, timings: Sequence[Timing]) -> None:
    columns = []
    for name in ("wall", "processor"):
        found = sorted(1000 * getattr(one, name) for one in timings)
        columns.append(f"{statistics.median(found):.0f} ({found[0]:.0f} to {found[-1]:.0f})")
    print(f"  {what:52} {columns[0]:>22} {columns[1]:>22}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="adapters that are measured")
    parser.add_argument("--rank", type=int, default=16, help="of each adapter")
    return parser.parse_args()


if __name__ == "__main__":
    main()
