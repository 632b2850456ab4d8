"""Holding the lease of a job or an export: renewed from a thread, told to a trainer by a file."""

import logging
import struct
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from app.db.database import Database
from app.db.repositories import leases
from app.db.repositories.leases import Renewal
from app.domain.errors import LeaseLost, Unavailable

# The trainer takes no step past this share of the time to live, so that it has certainly stopped
# when another worker may claim the job.
FENCE = 0.75

_log = logging.getLogger("tunesmith.worker")


_PREFIX = "tunesmith-lease-"
# A file in use is written several times within any sensible lease.
_LEFT_OVER_SECONDS = 86_400


class DeadlineFile:
    """Tells a trainer the moment past which it may change nothing.

    It is made before the claim: a job that is claimed must not wait for room in a full directory.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self) -> None:
        _delete_left_over()
        handle, name = tempfile.mkstemp(prefix=_PREFIX)
        self._file = open(handle, "r+b", buffering=0)  # noqa: SIM115 - closed by `close`.
        self.path = Path(name)
        try:
            self.tell(0.0)
        except OSError:
            self.close()
            raise

    def tell(self, moment: float) -> None:
        # Eight bytes in one write: the reader sees the old moment or the new one.
        self._file.seek(0)
        self._file.write(struct.pack("<d", moment))

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Renew(Protocol):
    """Extends a live lease by a time to live. Raises: LeaseLost."""

    def __call__(
        self, connection: Connection, job_id: str, epoch: int, ttl_seconds: float, /
    ) -> Renewal: ...


class Lease:
    """A claimed lease, renewed until it is closed or lost.

    Args:
        job_id: of the job; or of an export, with its `renew`.
        epoch: of the claim; every write of this attempt carries it.
        claimed_at: `time.monotonic()` from before the claim was sent.
        deadline_file: told of every renewal; the caller's to close. None where whoever works can
            publish nothing by itself.
    """

    def __init__(
        self,
        database: Database,
        job_id: str,
        epoch: int,
        *,
        ttl_seconds: float,
        claimed_at: float,
        deadline_file: DeadlineFile | None,
        renew: Renew = leases.renew,
    ) -> None:
        self.job_id = job_id
        self.epoch = epoch
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._pause = threading.Event()
        self._renew = renew
        self._deadline_file = deadline_file
        self._set_deadline(claimed_at + FENCE * ttl_seconds)
        self._thread = threading.Thread(target=self._renew_until_closed, name=f"lease {job_id}")
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """True once no write of this attempt can succeed any more, or its deadline has passed."""
        # Also when a renewal hangs: the other side of the fence does not wait for it.
        return self._lost.is_set() or time.monotonic() >= self._deadline

    @property
    def is_pause_requested(self) -> bool:
        """True once a renewal has brought back that the job shall pause."""
        return self._pause.is_set()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _renew_until_closed(self) -> None:
        interval = self._ttl_seconds / 4
        while not self._closing.wait(interval):
            # Measured from before the request: the database may have renewed it at any moment
            # since.
            asked_at = time.monotonic()
            try:
                with self._database.write() as connection:
                    renewal = self._renew(connection, self.job_id, self.epoch, self._ttl_seconds)
            except LeaseLost:
                self._lost.set()
                return
            except Unavailable as error:
                _log.warning("cannot renew the lease of %s: %s", self.job_id, error.message)
                interval = self._ttl_seconds / 20
                if time.monotonic() >= self._deadline:
                    self._lost.set()
                    return
                continue
            if renewal.pause_requested:
                self._pause.set()
            interval = self._ttl_seconds / 4
            self._set_deadline(asked_at + FENCE * self._ttl_seconds)

    def _set_deadline(self, moment: float) -> None:
        self._deadline = moment
        if self._deadline_file is not None:
            self._deadline_file.tell(moment)


def _delete_left_over() -> None:
    """Delete the files of workers that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                path.unlink()
