"""Checkpoints: a learner on disk, complete enough that a resumed run equals an uninterrupted one.

A checkpoint is one directory, published all at once: `adapter/` (what is served), `state/` (what
a resumed run needs beside it) and `files.json` (what both must hash to).
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.domain.errors import InvalidInput, NotFound, StorageFull, TrainingFailed
from app.domain.job_spec import AdapterRef, JobSpec
from app.storage.port import Storage
from worker.training.learner import Learner, StateTensors
from worker.training.metrics import MetricsLog
from worker.training.uploaded_start import unpacked
from worker.trunk.listing import Damaged, verify_listing, write_listing

FORMAT_VERSION = 2
ADAPTER_DIRECTORY = "adapter"

_STATE_DIRECTORY = "state"
_STATE_NAME = "state.json"
_TENSORS = ".safetensors"


class LearnerState(msgspec.Struct, frozen=True):
    """The part of a learner that is neither a tensor nor follows from its spec.

    Attributes:
        epoch: passes over the data that are complete.
        position: batches of the next pass that were taken.
        spec_sha256: of the spec that it ran under.
    """

    format_version: int
    spec_sha256: str
    step: int
    epoch: int
    position: int
    trained_tokens: int
    log: MetricsLog


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint.

    Attributes:
        prefix: where in the storage.
        manifest_sha256: SHA-256 of its list of files.
    """

    step: int
    prefix: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class SavedLearner:
    """What was read from a checkpoint that is whole.

    Attributes:
        adapter: the directory of what is served.
        tensors: as `Learner.state_tensors` gave them.
    """

    checkpoint: Checkpoint
    state: LearnerState
    adapter: Path
    tensors: StateTensors


def write_checkpoint(
    storage: Storage,
    prefix: str,
    learner: Learner,
    spec: JobSpec,
    before_publish: Callable[[], None],
) -> Checkpoint:
    """Write a learner and publish it under a prefix.

    Args:
        before_publish: called when everything is written; may end the process.

    Raises:
        StorageFull: there is no room; nothing was published.
    """
    with _full_disk_as_storage_full():
        directory = storage.scratch()
        try:
            adapter_directory = directory / ADAPTER_DIRECTORY
            adapter_directory.mkdir()
            learner.save_adapter(adapter_directory)
            _write_state(directory / _STATE_DIRECTORY, learner, spec)
            digest = write_listing(directory)
            before_publish()
            storage.publish(prefix, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return Checkpoint(learner.step, prefix, digest)


def read_checkpoint(storage: Storage, prefix: str, spec: JobSpec) -> SavedLearner:
    """Read a checkpoint after comparing every byte of it with its list of files.

    Raises:
        TrainingFailed: it is damaged or of another run (`checkpoint_corrupt`).
    """
    try:
        directory = storage.directory(prefix)
        digest = verify_listing(directory)
        state_directory = directory / _STATE_DIRECTORY
        state = msgspec.json.decode((state_directory / _STATE_NAME).read_bytes(), type=LearnerState)
        saved = SavedLearner(
            checkpoint=Checkpoint(state.step, prefix, digest),
            state=state,
            adapter=directory / ADAPTER_DIRECTORY,
            tensors={
                path.name.removesuffix(_TENSORS): load_file(path)
                for path in sorted(state_directory.glob(f"*{_TENSORS}"))
            },
        )
    except (Damaged, NotFound, InvalidInput, SafetensorError, msgspec.DecodeError) as error:
        raise _corrupt(str(error)) from error
    if state.format_version != FORMAT_VERSION or state.spec_sha256 != _spec_sha256(spec):
        raise _corrupt("it belongs to another run")
    return saved


@contextmanager
def locate_start(storage: Storage, start: AdapterRef | None) -> Iterator[Path | None]:
    """Lend the directory of the adapter to start from, after checking what is in it.

    One of a fine-tuned model is compared with its list of files; one that was uploaded with its
    digest, and it is unpacked for as long as the directory is lent.

    Args:
        start: None: there is none, and no directory.

    Raises:
        TrainingFailed: it is damaged or gone (`start_damaged`).
    """
    if start is None:
        yield None
    elif start.file is not None:
        with unpacked(storage, start.file) as directory:
            yield directory
    else:
        assert start.storage_prefix is not None
        yield _verified(storage, start.storage_prefix)


def _verified(storage: Storage, storage_prefix: str) -> Path:
    try:
        directory = storage.directory(storage_prefix)
        verify_listing(directory.parent, part=directory.name)
    except (Damaged, NotFound) as error:
        message = f"the model to start from is damaged: {error}"
        raise TrainingFailed(message, code="start_damaged", param="model") from error
    return directory


def restore(learner: Learner, saved: SavedLearner) -> None:
    """Put a new learner where the saved one was.

    Raises:
        TrainingFailed: the checkpoint does not hold what the learner needs.
    """
    learner.step = saved.state.step
    learner.trained_tokens = saved.state.trained_tokens
    learner.log = saved.state.log
    try:
        learner.load_state(saved.adapter, saved.tensors)
    except (InvalidInput, KeyError, RuntimeError) as error:
        raise _corrupt(str(error)) from error


def _write_state(directory: Path, learner: Learner, spec: JobSpec) -> None:
    directory.mkdir()
    for group, tensors in learner.state_tensors().items():
        on_cpu = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
        save_file(on_cpu, directory / f"{group}{_TENSORS}")
    epoch, position = divmod(learner.step, learner.steps_per_epoch)
    state = LearnerState(
        format_version=FORMAT_VERSION,
        spec_sha256=_spec_sha256(spec),
        step=learner.step,
        epoch=epoch,
        position=position,
        trained_tokens=learner.trained_tokens,
        log=learner.log,
    )
    # Floats are written as their shortest decimal form that reads back as the same number.
    (directory / _STATE_NAME).write_bytes(msgspec.json.encode(state))


def _corrupt(what: str) -> TrainingFailed:
    return TrainingFailed(f"the checkpoint is damaged: {what}", code="checkpoint_corrupt")


def _spec_sha256(spec: JobSpec) -> str:
    return hashlib.sha256(spec.to_json().encode()).hexdigest()


@contextmanager
def _full_disk_as_storage_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull() from error
        raise
    except SafetensorError as error:
        # Safetensors writes the file by itself and tells the cause in words only.
        if "No space left" in str(error):
            raise StorageFull() from error
        raise
