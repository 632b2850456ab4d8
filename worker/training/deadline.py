"""The moment past which a trainer may change nothing, because its lease may be another's."""

import os
import struct
import time
from pathlib import Path
from typing import Self

EXIT_PAST_DEADLINE = 75

_MOMENT = struct.Struct("<d")


class Deadline:
    """A moment of `time.monotonic()` in a file, which the supervisor rewrites at each renewal.

    Reading it costs one system call and needs no thread of this process to be on time: a trainer
    that was suspended finds it passed when it wakes up.

    Args:
        path: None: there is no deadline.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY) if path is not None else None
        except FileNotFoundError:
            # The supervisor removes the file when the attempt is over.
            os._exit(EXIT_PAST_DEADLINE)

    def enforce(self) -> None:
        """End the process at once if the moment has passed."""
        if self._file is None:
            return
        content = os.pread(self._file, _MOMENT.size, 0)
        if len(content) < _MOMENT.size or time.monotonic() > _MOMENT.unpack(content)[0]:
            os._exit(EXIT_PAST_DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
