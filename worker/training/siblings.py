"""The other processes of a trainer: started by rank 0, and ended with it."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from worker.training.commands import Command
from worker.training.ranks import EXIT_GROUP_LOST

_log = logging.getLogger("tunesmith.training")


class Siblings:
    """Ranks 1 and up, as processes in the group of this one.

    They end when their input does, which is when this process ends, however it does. One of them
    that ends by itself ends this process: its supervisor then resumes the job elsewhere.

    Args:
        module: what they run.
        size: of the whole group.
        meeting: where the ranks find each other.
    """

    def __init__(
        self, module: str, size: int, meeting: Path, environment: Mapping[str, str]
    ) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, "--rank", str(rank), "--meeting", str(meeting)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
            )
            for rank in range(1, size)
        ]
        for rank, process in enumerate(self._processes, start=1):
            threading.Thread(target=_end_with, args=[rank, process], daemon=True).start()

    def send(self, command: Command) -> None:
        """Send a command to all of them. That one is gone is found out elsewhere."""
        line = msgspec.json.encode(command) + b"\n"
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()


def _end_with(rank: int, process: "subprocess.Popen[bytes]") -> None:
    status = process.wait()
    _log.error("process %d of the trainer ended with status %d", rank, status)
    os._exit(EXIT_GROUP_LOST)
