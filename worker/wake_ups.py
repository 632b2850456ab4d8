"""Waiting for messages of a queue beside the one that Celery's worker waits for.

What a message says is of no interest: it wakes whoever looks into the database for work. Celery's
own worker takes none while it is busy, so two kinds of work need two who wait.
"""

import logging
import threading
from typing import Any, Protocol

from celery import Celery

from app.queue import Line

POLL_SECONDS = 1.0
RECONNECT_SECONDS = 2.0

_log = logging.getLogger("tunesmith.worker")


class Drainer(Protocol):
    """Does what there is to do."""

    def drain(self) -> None:
        """Do all of it. One caller at a time."""

    def stop(self) -> None:
        """Let a call return soon, and do nothing more."""


class WakeUps:
    """Has the work done at the start and for each message, in a thread of its own.

    A message is taken only when the call before has returned, and acknowledged at once: while this
    worker is busy, it is another's.
    """

    def __init__(self, celery: Celery, line: Line, drainer: Drainer) -> None:
        self._celery = celery
        self._line = line
        self._drainer = drainer
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=line.queue, daemon=True)

    def start(self) -> None:
        """Begin to wait; a second call, after Celery has come back to its broker, is none."""
        if self._thread.ident is None and not self._stopping.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._drainer.stop()

    def close(self) -> None:
        """Stop, and return once the thread has ended."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        # Also for what was queued while no worker was there, whose messages may be lost.
        self._drain()
        while not self._stopping.is_set():
            try:
                with self._celery.connection_for_read() as connection:
                    self._listen(connection)
            except Exception as error:  # Any client's way of saying that the broker is away.
                _log.warning("cannot wait for messages of %r: %s", self._line.queue, error)
                self._stopping.wait(RECONNECT_SECONDS)

    def _listen(self, connection: Any) -> None:
        with connection.SimpleQueue(self._line.queue) as queue:
            while not self._stopping.is_set():
                try:
                    queue.get(timeout=POLL_SECONDS).ack()
                except queue.Empty:
                    continue
                self._drain()

    def _drain(self) -> None:
        try:
            self._drainer.drain()
        except Exception:  # The next message must find somebody who waits for it.
            _log.exception("what a message of %r called for failed", self._line.queue)
