"""The numbers that tell whether jobs move on; the metrics and the doctor both look at them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from sqlalchemy import Connection

from app.db.repositories import batches, counters, locks, statistics
from app.db.repositories.counters import Counter
from app.db.repositories.statistics import Backlog
from app.domain.errors import Unavailable
from app.domain.job_state import JobStatus
from app.inference import EngineState
from app.queue import check_broker
from app.resources import Resources
from app.services.sweeper import LOCK, LOCK_TTL_SECONDS

BROKER_TIMEOUT_SECONDS = 1.0
BROKER_CACHE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the rows tell.

    Attributes:
        sweep_age_seconds: since the last sweep began; None if there never was one.
        counters: all of them, whether or not they were ever counted up.
    """

    jobs: Mapping[JobStatus, int]
    expired_leases: Backlog
    undispatched: Backlog
    unclaimed: Backlog
    sweep_age_seconds: float | None
    batches: batches.Backlog
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class VitalSigns:
    """Everything that is watched at all times; None for what could not be found out."""

    progress: Progress | None
    storage_free_bytes: int | None
    is_broker_connected: bool
    engines: Sequence[EngineState]


def vital_signs(resources: Resources) -> VitalSigns:
    """Look at everything, and go on without what does not answer."""
    return VitalSigns(
        progress=_progress_if_readable(resources),
        storage_free_bytes=_free_bytes_if_readable(resources),
        is_broker_connected=_is_broker_connected(
            resources, int(time.monotonic() / BROKER_CACHE_SECONDS)
        ),
        engines=resources.engine.states(),
    )


def read_progress(connection: Connection) -> Progress:
    seconds_left = locks.seconds_left(connection, LOCK)
    return Progress(
        jobs=statistics.count_jobs(connection),
        expired_leases=statistics.expired_leases(connection),
        undispatched=statistics.undispatched(connection),
        unclaimed=statistics.unclaimed(connection),
        sweep_age_seconds=(
            None if seconds_left is None else max(0.0, LOCK_TTL_SECONDS - seconds_left)
        ),
        batches=batches.backlog(connection),
        counters=dict.fromkeys(get_args(Counter), 0) | counters.get_all(connection),
    )


def _progress_if_readable(resources: Resources) -> Progress | None:
    try:
        with resources.database.read() as connection:
            return read_progress(connection)
    except Unavailable:
        return None


def _free_bytes_if_readable(resources: Resources) -> int | None:
    try:
        return resources.storage.free_bytes()
    except OSError:
        return None


# Whoever may look at the metrics, the broker is asked once in a while only.
@lru_cache(maxsize=1)
def _is_broker_connected(resources: Resources, period: int) -> bool:
    try:
        check_broker(resources.celery, BROKER_TIMEOUT_SECONDS)
    except Exception:  # Any client's way of saying no.
        return False
    return True
