"""Judging a task's model on examples: as it is now, as its base, or as it was when it began."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.tasks import Example, Judged, LossOptions, Task
from worker.training.learner import StateTensors, WhichModel
from worker.training.task_passes import TaskPasses, set_training
from worker.tuning import Tuning


class TaskJudge:
    """Looks at examples through a model in training.

    Args:
        start: directory of the adapter that the run goes on from; None: it begins at its base.
    """

    def __init__(self, task: Task, tuning: Tuning, passes: TaskPasses, start: Path | None) -> None:
        self._task = task
        self._tuning = tuning
        self._passes = passes
        self._start = start

    @torch.no_grad()
    def judge(
        self,
        examples: Sequence[Example],
        is_interrupted: Callable[[], bool],
        model: WhichModel = "tuned",
    ) -> Judged | None:
        """Return examples as a model sees them; None when interrupted."""
        losses: list[float] = []
        predictions: list[Any] = []
        with self._computing_as(model):
            set_training(self._tuning.model, False)
            for part in self._passes.cut(examples):
                if is_interrupted():
                    return None
                batch = self._passes.collate(part)
                found = self._task.loss(self._tuning.model, batch, LossOptions())
                losses += (found.sums / found.weights.clamp(min=1e-12)).tolist()
                predictions += self._task.predict(self._tuning.model, batch)
        return Judged(examples, predictions, losses)

    @contextmanager
    def _computing_as(self, model: WhichModel) -> Iterator[None]:
        if model == "tuned":
            yield
        elif model == "base" or self._start is None:
            with self._tuning.as_base():
                yield
        else:
            tuned = _copied(self._tuning.state_tensors())
            self._tuning.load_adapter(self._start)
            try:
                yield
            finally:
                self._tuning.load_state_tensors(tuned)


def _copied(tensors: Mapping[str, Mapping[str, Tensor]]) -> StateTensors:
    return {
        group: {name: tensor.clone() for name, tensor in named.items()}
        for group, named in tensors.items()
    }
