"""An uploaded adapter, unpacked for a run that starts from it."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from app.domain.adapter_archive import WEIGHTS_NAME, unpack_adapter
from app.domain.errors import InvalidFile, InvalidInput, NotFound, TrainingFailed
from app.domain.job_spec import FileRef
from app.storage.port import Storage
from worker.training.dataset_content import sha256_of

START_FILE = "tunesmith.start_from.file"

# What nobody has written to for an hour is taken for abandoned; a run may last longer.
_KEPT_SECONDS = 7 * 86_400


@contextmanager
def unpacked(storage: Storage, file: FileRef) -> Iterator[Path]:
    """Lend a directory with the files of an uploaded adapter.

    Raises:
        TrainingFailed: its content is gone or has changed, or a weight is not a number
            (`start_damaged`).
    """
    directory = storage.scratch()
    try:
        try:
            _unpack(storage, file, directory)
        except (InvalidFile, NotFound, SafetensorError) as error:
            raise _damaged(file, str(error)) from error
        kept_until = time.time() + _KEPT_SECONDS
        os.utime(directory / WEIGHTS_NAME, (kept_until, kept_until))
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check_head(directory: Path, head_modules: Sequence[str]) -> None:
    """Refuse an adapter without the weights of its task's head, which would be drawn anew.

    Args:
        directory: of the adapter.

    Raises:
        InvalidInput: naming the module.
    """
    with safe_open(directory / WEIGHTS_NAME, framework="pt") as weights:
        names = list(weights.keys())
    for module in head_modules:
        if not any(f".{module}." in name for name in names):
            raise InvalidInput(
                f"the adapter to start from has no weights of {module!r}, which its task needs: "
                "save it with modules_to_save",
                param=START_FILE,
            )


def _unpack(storage: Storage, file: FileRef, directory: Path) -> None:
    if sha256_of(storage, file.storage_key) != file.sha256:
        raise _damaged(file, "its content has changed")
    with storage.open(file.storage_key) as stream:
        unpack_adapter(stream, directory)
    with safe_open(directory / WEIGHTS_NAME, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no mapping.
            # Adapters of several tenants share a product: a NaN of one must never enter it.
            if not torch.isfinite(weights.get_tensor(name)).all():
                raise _damaged(file, f"{name} holds a value that is not finite")


def _damaged(file: FileRef, what: str) -> TrainingFailed:
    message = f"the adapter {file.file_id} to start from cannot be used: {what}"
    return TrainingFailed(message, code="start_damaged", param=START_FILE)
