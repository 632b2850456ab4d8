"""Checkpoints: a session on disk, complete enough that a resumed run equals an uninterrupted one.

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
from torch import Tensor

from app.domain.errors import InvalidInput, NotFound, StorageFull, TrainingFailed
from app.domain.job_spec import JobSpec
from app.storage.port import Storage
from worker.training.metrics import MetricsLog
from worker.training.session import Session
from worker.trunk.listing import Damaged, verify_listing, write_listing
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import load_adapter, save_adapter

FORMAT_VERSION = 1
ADAPTER_DIRECTORY = "adapter"

_STATE_DIRECTORY = "state"
_OPTIMIZER_NAME, _RNG_NAME, _STATE_NAME = "optimizer.safetensors", "rng.safetensors", "state.json"


class SessionState(msgspec.Struct, frozen=True):
    """The part of a session that is neither a tensor nor follows from its spec.

    Attributes:
        epoch: passes over the data that are complete.
        position: batches of the next pass that were taken.
        spec_sha256: of the spec that the session ran under.
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
class SavedSession:
    """What was read from a checkpoint that is whole."""

    checkpoint: Checkpoint
    state: SessionState
    adapter: LoraAdapter
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]


def write_checkpoint(
    storage: Storage,
    prefix: str,
    session: Session,
    spec: JobSpec,
    base_model_name: str,
    write_origin: Callable[[Path], None],
    before_publish: Callable[[], None],
) -> Checkpoint:
    """Write a session and publish it under a prefix.

    Args:
        write_origin: adds to the adapter's directory what it was trained with.
        before_publish: called when everything is written; may end the process.

    Raises:
        StorageFull: there is no room; nothing was published.
    """
    with _full_disk_as_storage_full():
        directory = storage.scratch()
        try:
            adapter_directory = directory / ADAPTER_DIRECTORY
            adapter_directory.mkdir()
            save_adapter(adapter_directory, session.adapter, base_model_name)
            write_origin(adapter_directory)
            _write_state(directory / _STATE_DIRECTORY, session, spec)
            digest = write_listing(directory)
            before_publish()
            storage.publish(prefix, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return Checkpoint(session.step, prefix, digest)


def read_checkpoint(storage: Storage, prefix: str, spec: JobSpec) -> SavedSession:
    """Read a checkpoint after comparing every byte of it with its list of files.

    Raises:
        TrainingFailed: it is damaged or of another run (`checkpoint_corrupt`).
    """
    try:
        directory = storage.directory(prefix)
        digest = verify_listing(directory)
        state_directory = directory / _STATE_DIRECTORY
        state = msgspec.json.decode((state_directory / _STATE_NAME).read_bytes(), type=SessionState)
        saved = SavedSession(
            checkpoint=Checkpoint(state.step, prefix, digest),
            state=state,
            adapter=load_adapter(directory / ADAPTER_DIRECTORY),
            optimizer=load_file(state_directory / _OPTIMIZER_NAME),
            rng=load_file(state_directory / _RNG_NAME),
        )
    except (Damaged, NotFound, InvalidInput, SafetensorError, msgspec.DecodeError) as error:
        raise _corrupt(str(error)) from error
    if state.format_version != FORMAT_VERSION or state.spec_sha256 != _spec_sha256(spec):
        raise _corrupt("it belongs to another run")
    return saved


def read_start(storage: Storage, storage_prefix: str) -> LoraAdapter:
    """Read the adapter that a run starts from, after comparing it with its list of files.

    Raises:
        TrainingFailed: it is damaged or gone (`start_damaged`).
        InvalidInput: it is not an adapter.
    """
    try:
        directory = storage.directory(storage_prefix)
        verify_listing(directory.parent, part=directory.name)
    except (Damaged, NotFound) as error:
        message = f"the model to start from is damaged: {error}"
        raise TrainingFailed(message, code="start_damaged", param="model") from error
    return load_adapter(directory)


def restore(session: Session, saved: SavedSession) -> None:
    """Put a new session, made with the saved adapter, where the saved one was."""
    session.step = saved.state.step
    session.trained_tokens = saved.state.trained_tokens
    session.log = saved.state.log
    session.optimizer.load_state_tensors(saved.optimizer)
    session.generator.set_state(saved.rng["dropout"])


def _write_state(directory: Path, session: Session, spec: JobSpec) -> None:
    directory.mkdir()
    optimizer = {name: t.detach().cpu() for name, t in session.optimizer.state_tensors().items()}
    save_file(optimizer, directory / _OPTIMIZER_NAME)
    save_file({"dropout": session.generator.get_state()}, directory / _RNG_NAME)
    epoch, position = divmod(session.step, session.steps_per_epoch)
    state = SessionState(
        format_version=FORMAT_VERSION,
        spec_sha256=_spec_sha256(spec),
        step=session.step,
        epoch=epoch,
        position=position,
        trained_tokens=session.trained_tokens,
        log=session.log,
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
