"""Holding a batch by its lease, for as long as it is worked on."""

import threading
import time

from app.db.database import Database
from app.db.repositories import batch_chunks, batch_leases
from app.db.repositories.batch_chunks import Chunk
from app.db.repositories.batch_leases import Standing
from app.db.repositories.batches import Batch
from app.domain.errors import LeaseLost


class Hold:
    """One holder of one batch. Its calls may come from any thread, one at a time."""

    def __init__(self, database: Database, batch: Batch, ttl_seconds: float) -> None:
        self.batch_id = batch.id
        self.epoch = batch.lease_epoch
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._renewed_at = time.monotonic()
        self._ended = threading.Event()

    def look(self) -> Standing:
        """Return how the batch stands, and renew the lease when it is time. Raises: LeaseLost."""
        if time.monotonic() < self._renewed_at + self._ttl_seconds / 4:
            with self._database.read() as connection:
                return batch_leases.look(connection, self.batch_id, self.epoch)
        with self._database.write() as connection:
            standing = batch_leases.renew(connection, self.batch_id, self.epoch, self._ttl_seconds)
        self._renewed_at = time.monotonic()
        return standing

    def add_chunk(self, chunk: Chunk) -> Standing:
        """Make the lines of a stored chunk count as done. Raises: LeaseLost."""
        with self._database.write() as connection:
            standing = batch_chunks.add(
                connection, self.batch_id, self.epoch, chunk, self._ttl_seconds
            )
        self._renewed_at = time.monotonic()
        return standing

    def end(self) -> None:
        """Let whatever works in a thread find out that it is no longer wanted."""
        self._ended.set()

    def check(self) -> None:
        """Raises: LeaseLost, once the hold was ended."""
        if self._ended.is_set():
            raise LeaseLost(f"the work on {self.batch_id} was broken off")
