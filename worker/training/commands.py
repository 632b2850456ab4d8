"""What the supervisor asks of the trainer: one JSON object a line, on standard input."""

import queue
from collections import deque
from typing import BinaryIO

import msgspec

from app.domain.job_spec import JobSpec
from worker.training.manifest import BaseModelRef


class Train(msgspec.Struct, frozen=True, tag="train", tag_field="op"):
    """Run one attempt at a job.

    Attributes:
        epoch: of the lease; every message of the run carries it.
        implementation: dotted path of the task, or of the training method of text generation.
        checkpoint_prefix: storage prefix of this attempt's checkpoints.
        resume_from: storage prefix of the checkpoint to go on from.
        deadline_file: holds the moment past which no step may be taken.
        step_log: file to which every step appends a line.
        output_model: the name that the result will have.
        epoch_ends: storage prefix of the checkpoint of each epoch that earlier attempts completed,
            by its step.
    """

    epoch: int
    spec: JobSpec
    implementation: str
    base: BaseModelRef
    storage_url: str
    checkpoint_prefix: str
    resume_from: str | None
    deadline_file: str | None
    checkpoint_interval_seconds: float
    step_log: str | None = None
    output_model: str | None = None
    epoch_ends: dict[int, str] = {}


class Preload(msgspec.Struct, frozen=True, tag="preload", tag_field="op"):
    """Load a base model ahead of any job."""

    base: BaseModelRef


class Stop(msgspec.Struct, frozen=True, tag="stop", tag_field="op"):
    """End the run at the next step boundary, with a checkpoint."""


class Abandon(msgspec.Struct, frozen=True, tag="abandon", tag_field="op"):
    """End the run at the next step boundary, writing nothing."""


Command = Train | Preload | Stop | Abandon


class CommandQueue:
    """Commands in the order in which they came; a running job sees only those that end it."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._waiting: deque[Command] = deque()
        self._decoder = msgspec.json.Decoder(Command)

    def read(self, stream: BinaryIO) -> None:
        """Take commands from a stream until it ends.

        Raises:
            msgspec.DecodeError: a line is not a command.
        """
        for line in stream:
            self._arrived.put(self._decoder.decode(line))

    def next(self) -> Command:
        """Return the next command, waiting for it."""
        return self._waiting.popleft() if self._waiting else self._arrived.get()

    def find_ending(self) -> Stop | Abandon | None:
        """Return the first command that has come to end a run; the others keep waiting."""
        while not self._arrived.empty():
            command = self._arrived.get()
            if isinstance(command, Stop | Abandon):
                return command
            self._waiting.append(command)
        return None
