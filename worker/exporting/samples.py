"""Records of a job that an export is compared on: held-out ones, or else those of training."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from app.domain.datasets import Record, read_records
from app.domain.errors import DomainError
from app.domain.job_spec import DatasetRef, JobSpec
from app.storage.port import Storage
from worker.training.dataset_content import open_dataset

MAX_SAMPLES = 8

Origin = Literal["validation_file", "training_file"]


def read_samples(storage: Storage, spec: JobSpec) -> Iterator[tuple[Origin, list[Record]]]:
    """Yield the first records of each file of a job that is still there, the best file first."""
    files: tuple[tuple[Origin, DatasetRef | None], ...] = (
        ("validation_file", spec.validation_file),
        ("training_file", spec.training_file),
    )
    for origin, file in files:
        if file is None:
            continue
        try:
            with open_dataset(storage, file, origin) as stream:
                records = [record for _, record in islice(read_records(stream), MAX_SAMPLES)]
        except DomainError:
            continue  # It was deleted: users need not keep what they have trained on.
        yield origin, records
