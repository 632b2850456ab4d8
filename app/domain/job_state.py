"""The life of a job: its states and the one table of moves between them."""

from collections.abc import Mapping
from enum import StrEnum


class JobStatus(StrEnum):
    """Status of a fine-tuning job, in OpenAI's words. Terminal: succeeded, failed, cancelled."""

    VALIDATING_FILES = "validating_files"  # The stored content is being checked; no device is held.
    QUEUED = "queued"  # Waiting for a worker to claim it.
    RUNNING = "running"  # Claimed: exactly one worker holds the lease.
    PAUSED = "paused"  # Stopped by its user, until they resume it.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobStatus

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    _S.VALIDATING_FILES: frozenset({_S.QUEUED, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    # Back to queued: the lease expired, or the worker shut down and gave the job back.
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.PAUSED, _S.QUEUED}),
    # To validation, if it was paused before that was done.
    _S.PAUSED: frozenset({_S.VALIDATING_FILES, _S.QUEUED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

TERMINAL: frozenset[JobStatus] = frozenset(s for s, targets in TRANSITIONS.items() if not targets)


def sources_of(target: JobStatus) -> frozenset[JobStatus]:
    """Return the states from which a job may move to `target`."""
    return frozenset(source for source, targets in TRANSITIONS.items() if target in targets)
