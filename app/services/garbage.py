"""Deleting from storage what no row names and nobody can come to name.

A directory of an attempt whose epoch has passed can be named by nobody any more: the fence holds
every write of it. Of the running attempt, whatever is newer than its last named checkpoint may be
about to be named.
"""

import logging

from app.db.database import Database
from app.db.repositories import adapters, batches, files, jobs
from app.db.repositories.jobs import Job
from app.domain.job_state import TERMINAL, JobStatus
from app.storage import Storage

# An upload that is still going on, or a checkpoint that is being written, is younger than this.
ABANDONED_AFTER_SECONDS = 3_600.0
ORPHANED_AFTER_SECONDS = 86_400.0
BATCH = 100

_log = logging.getLogger("tunesmith.sweeper")


def sweep_jobs(database: Database, storage: Storage, lease_ttl_seconds: float) -> int:
    """Delete checkpoints that no run can resume from and no name stands for; return how many."""
    with database.read() as connection:
        # A trainer that was fenced off may still write for as long as its lease would have held.
        found = jobs.list_unswept(connection, 2 * lease_ttl_seconds, BATCH)
    return sum(_sweep_job(database, storage, job) for job in found)


def sweep_abandoned(storage: Storage) -> int:
    """Delete what uploads and trainers began and did not finish; return how many."""
    return storage.delete_abandoned(ABANDONED_AFTER_SECONDS)


def sweep_orphans(database: Database, storage: Storage) -> int:
    """Delete the content of uploads whose row was never written, or is gone; return how many."""
    deleted = 0
    names = storage.list("files")
    for start in range(0, len(names), BATCH):
        with database.read() as connection:
            known = files.list_known(connection, names[start : start + BATCH])
        for name in set(names[start : start + BATCH]) - known:
            age_seconds = storage.age_seconds(f"files/{name}")
            if age_seconds is not None and age_seconds > ORPHANED_AFTER_SECONDS:
                storage.delete(f"files/{name}")
                deleted += 1
    return deleted


def sweep_batches(database: Database, storage: Storage) -> int:
    """Delete the answers of batches that have ended, whose files hold them; return how many.

    Who ends a batch deletes them, too: these are of one that died then, or wrote after it.
    """
    deleted = 0
    names = storage.list("batches")
    for start in range(0, len(names), BATCH):
        with database.read() as connection:
            needed = batches.list_unended(connection, names[start : start + BATCH])
        for name in set(names[start : start + BATCH]) - needed:
            storage.delete(f"batches/{name}")
            deleted += 1
    return deleted


def _sweep_job(database: Database, storage: Storage, job: Job) -> int:
    has_ended = job.status in TERMINAL
    if has_ended:
        with database.write() as connection:
            jobs.forget_checkpoints(connection, job.id)
    with database.read() as connection:
        named = {one.checkpoint_prefix for one in adapters.list_of_job(connection, job.id)}
    if has_ended:
        deleted = _sweep_ended(storage, job, named)
        with database.write() as connection:
            jobs.mark_swept(connection, job.id)
        return deleted
    kept = named | {job.resume_prefix, job.fallback_prefix}
    garbage = [prefix for prefix in _checkpoints(storage, job) if prefix not in kept]
    garbage = [prefix for prefix in garbage if not _may_be_named(job, prefix)]
    for prefix in garbage:
        storage.delete(prefix)
    return len(garbage)


def _sweep_ended(storage: Storage, job: Job, named: set[str]) -> int:
    deleted = 0
    for prefix in _checkpoints(storage, job):
        if prefix not in named:
            storage.delete(prefix)
            deleted += 1
        elif storage.list(f"{prefix}/state"):
            # What is served lies beside it.
            storage.delete(f"{prefix}/state")
            deleted += 1
    for epoch in storage.list(f"jobs/{job.id}"):
        if not storage.list(f"jobs/{job.id}/{epoch}"):
            storage.delete(f"jobs/{job.id}/{epoch}")
    return deleted


def _checkpoints(storage: Storage, job: Job) -> list[str]:
    return [
        f"jobs/{job.id}/{epoch}/{step}"
        for epoch in storage.list(f"jobs/{job.id}")
        for step in storage.list(f"jobs/{job.id}/{epoch}")
    ]


def _may_be_named(job: Job, prefix: str) -> bool:
    """Say whether the attempt that may be running could still make a row point here."""
    epoch, step = prefix.split("/")[-2:]
    if job.status is not JobStatus.RUNNING or epoch != f"e{job.lease_epoch}":
        return False
    return job.resume_step is None or int(step.removeprefix("step-")) > job.resume_step
