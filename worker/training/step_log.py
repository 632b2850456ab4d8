"""A line for every step that was computed: evidence of what ran when, for whoever audits it."""

import os
import time
from pathlib import Path
from typing import Literal, Self

import msgspec

# `begin` and `end` of an optimizer step; `checkpoint` when one of that step was published.
Phase = Literal["begin", "end", "checkpoint"]


class StepLine(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        epoch: of the lease under which the step was computed.
        time: `time.monotonic()`, which all processes of a machine share.
    """

    job: str
    epoch: int
    step: int
    phase: Phase
    time: float
    pid: int


class StepLog:
    """Appends to a file that any number of processes share.

    Args:
        path: None: nothing is written.
    """

    def __init__(self, path: Path | None, job: str, epoch: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(path, flags, 0o600) if path is not None else None
        self._job, self._epoch = job, epoch

    def write(self, phase: Phase, step: int) -> None:
        if self._file is None:
            return
        line = StepLine(self._job, self._epoch, step, phase, time.monotonic(), os.getpid())
        # One write, which the kernel appends whole.
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
