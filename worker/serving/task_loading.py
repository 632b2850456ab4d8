"""Loading a model of a task. Imported by its dotted path, on a thread: `peft` comes with it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from app.domain.registry import resolve
from app.domain.tasks import TASKS
from worker.serving.prediction_request import TaskModel
from worker.task_file import TaskFile
from worker.tasks import Task
from worker.trunk.device import DeviceProfile
from worker.tuning.loading import load_tuned


def load_task_model(
    base: InstalledBaseModel,
    task_file: TaskFile,
    tuned: Path | None,
    profile: DeviceProfile,
    relatives: Iterable[TaskModel],
) -> TaskModel:
    """Return a task on its base model.

    Args:
        tuned: directory of what was tuned of it; None is the base model as it is.
        relatives: models of the same base model, whose equal weights this one will share.

    Raises:
        InvalidInput: the task is not known here, or the files do not fit together.
    """
    implementation = TASKS[task_file.task].implementation
    if implementation is None:
        raise InvalidInput(f"{task_file.task} is not a task of predictions")
    task: Task = resolve(implementation)(base.directory, task_file.outline, profile, None)
    # Collected first: what is tuned wraps layers, and gives their weights other names.
    weights = _base_weights(task)
    module: nn.Module
    if tuned is not None:
        module = load_tuned(task, tuned)
    else:
        module = task.model.train(False).requires_grad_(False)
    _share(weights, [relative.base_weights for relative in relatives])
    return TaskModel(task, module, weights)


def _base_weights(task: Task) -> dict[str, nn.Parameter]:
    prefix = f"{task.model.base_model_prefix}."
    return {name.removeprefix(prefix): one for name, one in task.model.named_parameters()}


def _share(
    own: Mapping[str, nn.Parameter], relatives: Iterable[Mapping[str, nn.Parameter]]
) -> None:
    """Let weights that are equal lie in memory once.

    They are compared after loading, since some kinds of adapter change the base model's weights.
    """
    for theirs in relatives:
        for name, weight in own.items():
            other = theirs.get(name)
            if other is not None and _is_same(weight, other):
                weight.data = other.data


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape == other.shape
        and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))
    )
