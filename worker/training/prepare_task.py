"""A task beside text generation before its first step: the model with its head, the examples."""

import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from app.domain.datasets import read_records
from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.job_spec import JobSpec
from app.domain.registry import resolve
from app.storage.port import Storage
from worker.task_file import TASK_NAME, TaskFile
from worker.tasks import IMAGE_SIZE, Example, LossOptions, Outline, Task
from worker.tasks.labels import class_weights
from worker.training.bases import WarmBases
from worker.training.batches import derived_seed
from worker.training.commands import Train
from worker.training.dataset_content import open_dataset
from worker.training.examples import EncodedExamples, encode_examples
from worker.training.learner import Learner
from worker.training.manifest import Origin
from worker.training.memory import remember
from worker.training.task_learner import TaskLearner
from worker.training.uploaded_start import check_head
from worker.tuning import Tuning
from worker.tuning.making import make_tuning
from worker.tuning.quantized import QuantizedLayers


def make_task_learner(
    command: Train, bases: WarmBases, storage: Storage, token_budget: int, start: Path | None
) -> tuple[Learner, float]:
    """Return a learner before its first step, and the seconds that loading its base model took.

    Args:
        start: directory of the adapter that the run starts from; None: from the base model.

    Raises:
        TrainingFailed: a dataset has a record that cannot be trained on.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    spec = command.spec
    outline = _survey(command, storage) if start is None else _outline_of(start)
    # The head's and the adapter's first weights.
    torch.manual_seed(derived_seed(spec.seed, "adapter"))
    bases.forget()
    started = time.perf_counter()
    task = _make_task(command, outline, bases, start)
    load_seconds = time.perf_counter() - started
    training = _examples(command, storage, task, "training_file")
    heldout = list[Example]()
    if spec.validation_file is not None:
        heldout = list(_examples(command, storage, task, "validation_file").examples)
    elif spec.evaluation.holdout > 0:
        training, heldout = training.without(spec.evaluation.holdout, spec.seed)
    memory = None
    replay = spec.hyperparameters.replay
    if replay is not None:
        assert start is not None
        earlier = _examples(command, storage, task, "tunesmith.training.replay.file")
        memory = remember(earlier, start, len(training.examples), replay.share, spec.seed)
    num_examples = len(training.examples) + (len(memory.replayed) if memory else 0)
    quantized: QuantizedLayers | None = None
    if spec.hyperparameters.base_quantization is not None:
        quantized = QuantizedLayers(
            task.model, spec.hyperparameters.base_quantization, task.head_modules
        )

    def become_served() -> None:
        if quantized is not None:
            quantized.restore(_make_task(command, outline, bases, start).model)

    tuning: Tuning = make_tuning(spec, task, _total_steps(spec, num_examples))
    if start is not None:
        tuning.load_adapter(start)
    learner = TaskLearner(
        spec,
        task,
        tuning,
        command.base.name_or_path,
        training,
        heldout,
        memory,
        token_budget,
        _loss_options(spec, outline, training),
        Origin(
            spec,
            command.base,
            Path(command.base.directory),
            bases.profile,
            task_file=TaskFile(spec.task, dict(outline)),
        ).write,
        become_served,
    )
    return learner, load_seconds


def _make_task(command: Train, outline: Outline, bases: WarmBases, start: Path | None) -> Task:
    make = resolve(command.implementation)
    try:
        task: Task = make(Path(command.base.directory), outline, bases.profile, command.spec)
    except (KeyError, TypeError) as error:
        if start is None:
            raise
        raise InvalidInput(
            f"the {TASK_NAME} of what the job starts from is not for {command.spec.task}: {error}"
        ) from error
    is_uploaded = command.spec.start_from is not None and command.spec.start_from.file is not None
    if start is not None and is_uploaded:
        check_head(start, task.head_modules)
    return task


def _survey(command: Train, storage: Storage) -> dict[str, Any]:
    spec = command.spec
    survey = resolve(command.implementation).survey
    try:
        with open_dataset(storage, spec.training_file, "training_file") as stream:
            outline: dict[str, Any] = survey(read_records(stream))
    except InvalidInput as error:
        raise TrainingFailed(
            error.message, code="invalid_training_file", param="training_file"
        ) from error
    if spec.hyperparameters.image_size is not None:
        outline[IMAGE_SIZE] = spec.hyperparameters.image_size
    return outline


def _outline_of(adapter: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((adapter / TASK_NAME).read_bytes(), type=TaskFile).outline
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"the model to start from has no readable {TASK_NAME}") from error


def _examples(command: Train, storage: Storage, task: Task, param: str) -> EncodedExamples:
    spec = command.spec
    replay = spec.hyperparameters.replay
    files = {
        "training_file": spec.training_file,
        "validation_file": spec.validation_file,
        "tunesmith.training.replay.file": replay.file if replay else None,
    }
    file = files[param]
    assert file is not None
    longest = spec.hyperparameters.max_length_tokens
    with open_dataset(storage, file, param) as stream:
        return encode_examples(stream, lambda record: task.encode(record, longest), param)


def _loss_options(spec: JobSpec, outline: Outline, training: EncodedExamples) -> LossOptions:
    asked = spec.hyperparameters.class_weights
    weights = None
    if asked is not None:
        weights = class_weights(asked, outline["labels"], training.examples)
    return LossOptions(spec.hyperparameters.label_smoothing, weights)


def _total_steps(spec: JobSpec, num_examples: int) -> int:
    batches = -(-num_examples // spec.hyperparameters.batch_size)
    return batches * spec.hyperparameters.num_epochs
