"""What must be in place before the first step: the model, the data, and where a run left off."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.methods import METHODS
from app.domain.registry import resolve
from app.domain.tasks import TEXT_GENERATION
from app.storage.port import Storage
from worker.training.bases import WarmBases
from worker.training.checkpoints import SavedLearner, read_checkpoint, restore
from worker.training.commands import Train
from worker.training.learner import Learner

# By name, since `peft` and the metrics take seconds to import, which most trainers never need.
_TASK_LEARNER = "worker.training.prepare_task:make_task_learner"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run about to take its first step.

    Attributes:
        resumed: the checkpoint that the learner continues from.
        base_load_seconds: 0 when the base model was in memory.
        memory_note: how the memory of the device is used, for people.
    """

    learner: Learner
    resumed: SavedLearner | None
    base_load_seconds: float
    memory_note: str

    def as_message(self) -> dict[str, Any]:
        """Return the fields of the `prepared` message."""
        learner = self.learner
        return {
            **learner.description(),
            "steps_per_epoch": learner.steps_per_epoch,
            "total_steps": learner.total_steps,
            "start_step": learner.step,
            "base_load_seconds": self.base_load_seconds,
            "memory_note": self.memory_note,
        }


def prepare(
    command: Train,
    bases: WarmBases,
    storage: Storage,
    token_budget: int,
    start: Path | None,
) -> Prepared:
    """Load, encode and restore.

    Args:
        start: directory of the adapter that the run starts from; None: from the base model.

    Raises:
        TrainingFailed: a dataset has a record that cannot be trained on, or none that can; or
            the checkpoint is damaged.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    # A damaged checkpoint is found before anything slow is done.
    saved = _read_saved(command, storage)
    is_packed = command.spec.task == TEXT_GENERATION
    make = resolve(METHODS[command.spec.method].learner if is_packed else _TASK_LEARNER)
    learner, base_load_seconds = make(command, bases, storage, token_budget, start)
    try:
        if saved is not None:
            restore(learner, saved)
        note = learner.arrange_memory(command.spec.hyperparameters.gradient_checkpointing)
    except (TrainingFailed, InvalidInput):
        learner.close()
        raise
    return Prepared(learner, saved, base_load_seconds, note)


def _read_saved(command: Train, storage: Storage) -> SavedLearner | None:
    if command.resume_from is None:
        return None
    return read_checkpoint(storage, command.resume_from, command.spec)
