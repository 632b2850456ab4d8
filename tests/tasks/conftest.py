"""Tasks on real base models, and runs of them in this process."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.base_models import ensure_installed, load_catalogue
from app.domain.datasets import Record, read_records
from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec
from app.domain.registry import resolve
from app.domain.tasks import TASKS
from app.storage.local import LocalStorage
from tests.support.datasets import as_jsonl
from tests.training.conftest import CPU, Attempt
from worker.tasks import Batch, Example, Judged, LossOptions, Task, TaskLoss
from worker.training.bases import WarmBases
from worker.training.commands import Train
from worker.training.manifest import BaseModelRef
from worker.training.run import run_job

MINILM = "all-minilm-l6-v2"

Fields = dict[str, Any]
FindModel = Callable[[str], Path]
RunTask = Callable[..., Attempt]


@pytest.fixture(scope="session")
def find_model(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FindModel:
    """Return the directory of a model of the catalogue, which is fetched at its first use."""
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    return lambda name: ensure_installed(catalogue.get(name), models_dir).directory


@pytest.fixture(scope="session")
def minilm(find_model: FindModel) -> Path:
    return find_model(MINILM)


@pytest.fixture(scope="session")
def bases() -> WarmBases:
    torch.set_num_threads(1)
    return WarmBases(CPU)


@pytest.fixture
def run_task(bases: WarmBases, tmp_path: Path) -> RunTask:
    """Run a job, or an attempt at one, until it ends, and return what it sent."""

    def run(
        spec: JobSpec,
        directory: Path,
        *,
        lease: int = 1,
        resume_from: str | None = None,
        answers: Mapping[tuple[str, int], str] | None = None,
    ) -> Attempt:
        attempt = Attempt(answers or {})
        implementation = TASKS[spec.task].implementation
        assert implementation is not None
        command = Train(
            epoch=lease,
            spec=spec,
            implementation=implementation,
            base=BaseModelRef(spec.base_model, str(directory), "revision-1", "tests/base"),
            storage_url=f"file://{tmp_path}/storage",
            checkpoint_prefix=f"jobs/{spec.job_id}/e{lease}",
            resume_from=resume_from,
            deadline_file=None,
            checkpoint_interval_seconds=300.0,
        )
        run_job(command, bases, attempt.commands, attempt.send, token_budget=1024)
        return attempt

    return run


def task_spec(
    storage: LocalStorage,
    task: str,
    records: Sequence[Fields] | bytes,
    heldout: Sequence[Fields] | bytes | None = None,
    *,
    method: str = "supervised",
    adapter: AdapterSpec = AdapterSpec(),  # noqa: B008
    **hyperparameters: Any,
) -> JobSpec:
    """Return the spec of a small run, with its records stored."""
    chosen = {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "max_length_tokens": 128}
    return JobSpec(
        job_id=f"ftjob-{task}",
        base_model="test",
        method=method,
        training_file=_put(storage, "train", records),
        validation_file=None if heldout is None else _put(storage, "heldout", heldout),
        start_from=None,
        seed=7,
        hyperparameters=Hyperparameters(**(chosen | hyperparameters)),
        adapter=adapter,
        task=task,
    )


def make_task(task: str, directory: Path, records: Sequence[Fields], seed: int = 0) -> Any:
    """Return a task as training makes it of records; its head is drawn from a seed."""
    implementation = TASKS[task].implementation
    assert implementation is not None
    kind = resolve(implementation)
    torch.manual_seed(seed)
    made = kind(directory, kind.survey(numbered(records)), CPU, None)
    made.model.eval()
    return made


def numbered(records: Sequence[Fields]) -> list[tuple[int, Record]]:
    """Return records with their lines, as a file of them is read."""
    return list(read_records(io.BytesIO(as_jsonl(records))))


def encoded(task: Task, records: Sequence[Fields], longest: int = 128) -> list[Example]:
    """Return the examples of records."""
    found: list[Example] = []
    for _, record in numbered(records):
        examples = task.encode(record, longest)
        found += [examples] if isinstance(examples, Example) else examples
    return found


@torch.no_grad()
def predicted(task: Task, examples: Sequence[Example]) -> list[Any]:
    """Return what a task predicts for examples in one batch."""
    return task.predict(task.model, task.collate(examples))


@torch.no_grad()
def loss_of(task: Task, batch: Batch, **options: Any) -> TaskLoss:
    """Return the loss of a batch under `LossOptions`."""
    return task.loss(task.model, batch, LossOptions(**options))


def answered(task: Task, value: Any, **parameters: Any) -> Any:
    """Return the answer to a request."""
    example = task.encode_input(value)
    return task.answer(example, predicted(task, [example])[0], parameters)


def judged(examples: Sequence[Example], predictions: Sequence[Any]) -> Judged:
    return Judged(examples, predictions, [float(number) for number in range(len(examples))])


def validations(attempt: Attempt, metric: str) -> list[float]:
    """Return what was measured before training and after each epoch."""
    return [one[f"valid_{metric}"] for one in attempt.of_type("validation")]


def _put(storage: LocalStorage, name: str, records: Sequence[Fields] | bytes) -> DatasetRef:
    content = records if isinstance(records, bytes) else as_jsonl(records)
    key = f"files/{name}"
    storage.put(key, [content])
    return DatasetRef(name, key, hashlib.sha256(content).hexdigest(), len(records))
