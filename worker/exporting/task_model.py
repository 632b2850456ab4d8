"""Models of every task beside text generation, by the task's own code (`worker.tasks`)."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.errors import DomainError, ExportFailed
from app.domain.job_spec import JobSpec
from app.domain.registry import resolve
from app.domain.tasks import TASKS
from app.storage.port import Storage
from worker.exporting.fixed_inputs import fixed_examples
from worker.exporting.model import InputsTold, frozen
from worker.exporting.samples import MAX_SAMPLES, read_samples
from worker.exporting.text_model import merge
from worker.task_file import TaskFile
from worker.tasks import Example, LossOptions, Task
from worker.trunk.device import DeviceProfile
from worker.trunk.peft_format import CONFIG_NAME
from worker.tuning.loading import load_peft, load_tuned

_CPU = DeviceProfile("cpu", "float32", 1)
# What the models of the tasks give; of a model that gives several, all are compared.
_OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
_PREPARATION = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "task.json",
)


class TaskModel:
    """See `ExportedModel`."""

    def __init__(
        self, base: Path, adapter: Path, spec: JobSpec, storage: Storage, task_file: TaskFile
    ) -> None:
        self.base, self.adapter, self.spec = base, adapter, spec
        self._task_file = task_file
        self._task = self._new_task()
        origin, examples = self._examples(storage)
        self.batch = self._task.collate(examples)
        self.is_learnt = examples[0].target is not None
        self.inputs = InputsTold(origin, _positions(self.batch, len(examples)))

    def untuned(self) -> PreTrainedModel:
        return frozen(self._new_task().model)

    def tuned(self) -> nn.Module:
        return self.load_adapter(self.adapter)

    def load_adapter(self, directory: Path) -> nn.Module:
        return load_tuned(self._new_task(), directory)

    def merged(self) -> PreTrainedModel:
        task = self._new_task()
        if not (self.adapter / CONFIG_NAME).exists():
            return merge(load_tuned(task, self.adapter))
        return merge(load_peft(task.model, self.adapter))

    def save_preparation(self, into: Path) -> None:
        for name in _PREPARATION:
            for directory in (self.adapter, self.base):
                if (directory / name).exists():
                    shutil.copyfile(directory / name, into / name)
                    break

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        call = self._loss if self.is_learnt else self._prediction
        yield from _captured(model, call)

    def _loss(self, model: nn.Module) -> None:
        self._task.loss(model, self.batch, LossOptions())

    def _prediction(self, model: nn.Module) -> None:
        self._task.predict(model, self.batch)

    def _new_task(self) -> Task:
        implementation = TASKS[self._task_file.task].implementation
        assert implementation is not None
        # What is drawn for a head that is then replaced must not differ between loads.
        torch.manual_seed(0)
        task: Task = resolve(implementation)(self.base, self._task_file.outline, _CPU, None)
        return task

    def _examples(self, storage: Storage) -> tuple[Any, list[Example]]:
        length = self.spec.hyperparameters.max_length_tokens
        for origin, records in read_samples(storage, self.spec):
            examples: list[Example] = []
            for record in records:
                try:
                    encoded = self._task.encode(record, length)
                except DomainError:
                    continue  # A label that the model does not know, for instance.
                if encoded is not None:
                    examples += [encoded] if isinstance(encoded, Example) else encoded
            if examples:
                return origin, examples[:MAX_SAMPLES]
        return "fixed", fixed_examples(self._task_file.task, self._task)


def _captured(model: nn.Module, call: Callable[[nn.Module], None]) -> list[Tensor]:
    """Return what a model gave while it was called, as [rows, numbers] float32."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        for name in _OUTPUTS:
            if isinstance(tensor := getattr(output, name, None), Tensor):
                found.append(tensor.float().flatten(0, -2))

    handle = model.register_forward_hook(keep)
    try:
        call(model)
    finally:
        handle.remove()
    if not found:
        raise ExportFailed("the model gives no output that could be compared")
    return found


def _positions(batch: Any, examples: int) -> int:
    mask = batch.get("attention_mask")
    return examples if mask is None else int(mask.sum())
