"""Writing under a lease although the database may be away for a while."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from app.db.database import Database
from app.domain.errors import LeaseLost, Unavailable
from worker.lease import Lease

RETRY_SECONDS = 0.5

_log = logging.getLogger("tunesmith.worker")


def write_until_taken(
    database: Database, lease: Lease, write: Callable[[Connection], None]
) -> None:
    """Run a write, in a transaction of its own, until the database takes it.

    A write whose connection was lost may have been made, and is then repeated.

    Raises:
        LeaseLost: the lease was lost meanwhile, or the write found it taken over.
    """
    while True:
        try:
            with database.write() as connection:
                write(connection)
            return
        except Unavailable as error:
            if lease.is_lost:
                raise LeaseLost() from error
            _log.warning("cannot write, trying again: %s", error.message)
            time.sleep(RETRY_SECONDS)
