"""Waiting for room in storage: a job that is claimed must be able to write its checkpoints."""

import logging
import threading
import time

from app.storage import Storage

POLL_SECONDS = 1.0
# After a write found no room although there should have been some, as under a quota.
RETRY_SECONDS = 15.0

_log = logging.getLogger("tunesmith.worker")


class Room:
    """What is known of the room in storage.

    Args:
        min_free_bytes: with less than this, no job is claimed.
        stopping: ends every wait.
    """

    def __init__(self, storage: Storage, min_free_bytes: int, stopping: threading.Event) -> None:
        self._storage = storage
        self._min_free_bytes = min_free_bytes
        self._stopping = stopping
        self._not_before = 0.0

    def was_missing(self) -> None:
        """Remember that a write found no room: there is no use in trying again at once."""
        self._not_before = time.monotonic() + RETRY_SECONDS

    def wait(self) -> None:
        """Return once there is room, or everything stops."""
        is_told = False
        while not self._stopping.is_set():
            free_bytes = self._free_bytes()
            if free_bytes >= self._min_free_bytes and time.monotonic() >= self._not_before:
                return
            if not is_told:
                _log.error(
                    "storage has %d MiB free, and %d are kept free: no job is claimed until there "
                    "is room",
                    free_bytes >> 20,
                    self._min_free_bytes >> 20,
                )
                is_told = True
            self._stopping.wait(POLL_SECONDS)

    def _free_bytes(self) -> int:
        try:
            return self._storage.free_bytes()
        except OSError as error:
            _log.error("storage does not answer: %s", error)
            return 0
