"""What must be in place before the first step: the trunk, the data as tokens, the session."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.domain.errors import NotFound, TrainingFailed
from app.domain.job_spec import DatasetRef, JobSpec
from app.domain.registry import resolve
from app.storage.port import Storage
from worker.training.bases import WarmBase, WarmBases
from worker.training.batches import split
from worker.training.checkpoints import (
    Checkpoint,
    SavedLearner,
    locate_start,
    read_checkpoint,
    restore,
)
from worker.training.commands import Train
from worker.training.learner import Learner
from worker.training.manifest import write_origin_of_trunk
from worker.training.methods import Method
from worker.training.packed_learner import PackedLearner
from worker.training.records import EncodedDataset, encode_dataset
from worker.training.session import Session, starting_adapter
from worker.training.trained_weights import LoraWeights
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import load_adapter


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run about to take its first step.

    Attributes:
        resumed: the checkpoint that the learner continues from.
        base_load_seconds: 0 when the base model was in memory.
    """

    learner: Learner
    resumed: Checkpoint | None
    base_load_seconds: float

    def as_message(self) -> dict[str, Any]:
        """Return the fields of the `prepared` message."""
        learner = self.learner
        return {
            **learner.description(),
            "steps_per_epoch": learner.steps_per_epoch,
            "total_steps": learner.total_steps,
            "start_step": learner.step,
            "base_load_seconds": self.base_load_seconds,
        }


def prepare(command: Train, bases: WarmBases, storage: Storage, token_budget: int) -> Prepared:
    """Load, encode and restore.

    Raises:
        TrainingFailed: a dataset has a record that cannot be trained on, or none that can; or
            the checkpoint is damaged.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    # A damaged checkpoint is found before anything slow is done.
    saved = _read_saved(command, storage)
    learner, base_load_seconds = _packed_learner(command, bases, storage, token_budget)
    if saved is not None:
        restore(learner, saved)
    return Prepared(learner, saved.checkpoint if saved else None, base_load_seconds)


def _packed_learner(
    command: Train, bases: WarmBases, storage: Storage, token_budget: int
) -> tuple[Learner, float]:
    spec = command.spec
    base, base_load_seconds = bases.get(command.base)
    trunk = base.trunk
    method: Method = resolve(command.implementation)(spec)
    dataset = partial(_dataset, command, storage, base, method)
    training = dataset("training_file", spec.training_file)
    heldout: tuple[EncodedDataset, Sequence[int]] | None = None
    records: Sequence[int] = range(training.num_records)
    if spec.validation_file is not None:
        validation = dataset("validation_file", spec.validation_file)
        heldout = validation, range(validation.num_records)
    elif spec.evaluation.holdout > 0:
        records, kept_out = split(training.num_records, spec.evaluation.holdout, spec.seed)
        heldout = (training, kept_out) if kept_out else None
    adapter = starting_adapter(trunk, spec, _start(storage, spec))
    session = Session(spec, method, adapter, training, trunk.device, records=records)
    learner = PackedLearner(
        trunk,
        session,
        LoraWeights(adapter, command.base.name_or_path),
        heldout,
        token_budget,
        partial(
            write_origin_of_trunk, spec=spec, base=command.base, trunk=trunk, profile=bases.profile
        ),
    )
    return learner, base_load_seconds


def _read_saved(command: Train, storage: Storage) -> SavedLearner | None:
    if command.resume_from is None:
        return None
    return read_checkpoint(storage, command.resume_from, command.spec)


def _start(storage: Storage, spec: JobSpec) -> LoraAdapter | None:
    if spec.start_from is None:
        return None
    return load_adapter(locate_start(storage, spec.start_from.storage_prefix))


def _dataset(
    command: Train,
    storage: Storage,
    base: WarmBase,
    method: Method,
    param: str,
    file: DatasetRef,
) -> EncodedDataset:
    max_length_tokens = command.spec.hyperparameters.max_length_tokens
    encode = partial(method.encode, base.trunk.tokenizer, max_length_tokens=max_length_tokens)

    def read() -> EncodedDataset:
        with storage.open(file.storage_key) as stream:
            return encode_dataset(stream, encode, param)

    try:
        if _sha256(storage, file.storage_key) != file.sha256:
            raise _unusable(f"the content of file {file.file_id} has changed", param)
        return base.dataset((file.sha256, command.implementation, max_length_tokens), read)
    except NotFound as error:
        raise _unusable(f"the content of file {file.file_id} is gone", param) from error


def _sha256(storage: Storage, key: str) -> str:
    digest = hashlib.sha256()
    with storage.open(key) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unusable(message: str, param: str) -> TrainingFailed:
    return TrainingFailed(message, code="invalid_training_file", param=param)
