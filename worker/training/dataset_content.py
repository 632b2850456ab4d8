"""Datasets as they lie in storage, read only if they are what the spec says."""

import hashlib
from typing import BinaryIO

from app.domain.errors import NotFound, TrainingFailed
from app.domain.job_spec import DatasetRef
from app.storage.port import Storage


def open_dataset(storage: Storage, file: DatasetRef, param: str) -> BinaryIO:
    """Open a dataset after comparing its content with its digest.

    Args:
        param: what the dataset is called in messages: `training_file`.

    Raises:
        TrainingFailed: its content is gone or has changed.
    """
    try:
        if sha256_of(storage, file.storage_key) != file.sha256:
            raise _unusable(f"the content of file {file.file_id} has changed", param)
        return storage.open(file.storage_key)
    except NotFound as error:
        raise _unusable(f"the content of file {file.file_id} is gone", param) from error


def sha256_of(storage: Storage, key: str) -> str:
    """Return the digest of stored content. Raises: NotFound."""
    digest = hashlib.sha256()
    with storage.open(key) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unusable(message: str, param: str) -> TrainingFailed:
    return TrainingFailed(message, code="invalid_training_file", param=param)
