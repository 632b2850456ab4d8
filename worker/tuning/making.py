"""Choosing what trains a model: `peft`, or every weight."""

from app.domain.job_spec import JobSpec
from app.domain.peft_kinds import FULL
from worker.tasks import Task
from worker.tuning import Tuning
from worker.tuning.full_tuning import FullTuning
from worker.tuning.peft_config import Surroundings
from worker.tuning.peft_tuning import PeftTuning


def make_tuning(spec: JobSpec, task: Task, total_steps: int) -> Tuning:
    """Return what is trained of a task's model.

    Raises:
        InvalidInput: the adapter does not fit the model.
    """
    if spec.adapter.type == FULL:
        return FullTuning(task.model, spec.hyperparameters.freeze_layers)
    task.model.requires_grad_(False)
    around = Surroundings(
        task.model,
        task.head_modules,
        task.peft_task_type,
        total_steps,
        spec.hyperparameters.freeze_layers,
    )
    return PeftTuning(spec.adapter, around)
