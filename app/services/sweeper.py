"""The sweep: what turns rows into progress when nobody asks. One process does it at a time.

It advances sweeps of hyperparameters, validates new jobs, sends wake-ups for queued ones, brings
back jobs whose worker fell silent, does the same for exports, and deletes what is past its time or
left over. Every step may be repeated or interrupted at any point.
"""

import logging
import secrets
import threading
import time
from contextlib import suppress

from sqlalchemy import Connection

from app.db.clock import now
from app.db.repositories import (
    counters,
    export_leases,
    files,
    jobs,
    leases,
    locks,
    sweeps,
)
from app.db.repositories.jobs import Job
from app.domain.errors import LeaseLost, Unavailable
from app.domain.job_state import JobStatus
from app.queue import EXPORTS, JOBS, Line, count_waiting, send_wake_ups
from app.resources import Resources
from app.services import garbage
from app.services.idempotency import delete_expired
from app.services.sweep_looks import advance
from app.services.traffic import forget_old
from app.services.validation import validate

LOCK = "sweep"
LOCK_TTL_SECONDS = 15.0
EXPIRY_INTERVAL_SECONDS = 60.0
ORPHANS_INTERVAL_SECONDS = 3_600.0
FAILED_PAUSE_SECONDS = 2.0
BATCH = 100

_log = logging.getLogger("tunesmith.sweeper")


class Sweeper:
    """Sweeps in a thread of its own until it is closed."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._owner = secrets.token_hex(8)
        self._wake = threading.Event()
        self._closing = False
        self._broker_is_down = False
        self._next_expiry = 0.0
        self._next_orphans = 0.0
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        """Sweep soon: something was committed that waits for it. Never blocks."""
        self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10)

    def sweep(self) -> None:
        """Do everything that is due now, if no other process is at it."""
        database = self._resources.database
        with database.write() as connection:
            if not locks.acquire(connection, LOCK, self._owner, LOCK_TTL_SECONDS):
                return
        # First, so that the jobs which it adds are validated and sent in the same round.
        self._advance_sweeps()
        self._validate_new()
        self._bring_back_expired()
        self._bring_back_exports()
        self._dispatch()
        if time.monotonic() >= self._next_expiry:
            self._expire_files()
            self._delete_garbage()
            delete_expired(database)
            forget_old(database, self._resources.settings.feedback_window_seconds)
            self._next_expiry = time.monotonic() + EXPIRY_INTERVAL_SECONDS

    def _run(self) -> None:
        while not self._closing:
            pause_seconds = self._resources.settings.sweep_interval_seconds
            try:
                self.sweep()
            except Unavailable as error:
                _log.warning("sweep put off: %s", error.message)
                # A log of nothing else would hide what else there is to see.
                pause_seconds = max(pause_seconds, FAILED_PAUSE_SECONDS)
            except Exception:  # The sweep must outlive whatever goes wrong in one round.
                _log.exception("sweep failed; trying again")
                pause_seconds = max(pause_seconds, FAILED_PAUSE_SECONDS)
            self._wake.wait(pause_seconds)
            self._wake.clear()

    def _advance_sweeps(self) -> None:
        resources = self._resources
        with resources.database.read() as connection:
            running = sweeps.list_running(connection, BATCH)
        for sweep_id in running:
            try:
                advance(resources.database, resources.described_catalogue, sweep_id)
            except Exception:  # One sweep's trouble must not hold up the others.
                _log.exception("cannot advance the sweep %s for now", sweep_id)

    def _validate_new(self) -> None:
        resources = self._resources
        with resources.database.read() as connection:
            waiting = jobs.list_in(connection, JobStatus.VALIDATING_FILES, BATCH)
        for job in waiting:
            try:
                validate(resources.database, resources.storage, resources.catalogue, job)
            except Exception:  # One job's trouble must not hold up the others.
                _log.exception("cannot check the files of %s for now", job.id)

    def _bring_back_expired(self) -> None:
        with self._resources.database.read() as connection:
            expired = leases.list_expired(connection, BATCH)
        for job in expired:
            # It may have ended since it was listed; its epoch tells.
            with suppress(LeaseLost), self._resources.database.write() as connection:
                self._bring_back(connection, job)

    def _bring_back(self, connection: Connection, job: Job) -> None:
        limit = self._resources.settings.max_attempts
        if job.attempts < limit:
            reason = f"The worker of attempt {job.attempts} fell silent"
            leases.give_back(connection, job.id, job.lease_epoch, reason, level="warn")
            counters.add(connection, "lease_steals")
            return
        message = f"The worker was lost {job.attempts} times; the limit is {limit}."
        jobs.transition(
            connection,
            job.id,
            JobStatus.FAILED,
            message=message,
            level="error",
            epoch=job.lease_epoch,
            error={"code": "worker_lost", "message": message, "param": None},
            finished_at=now(),
            lease_expires_at=None,
        )
        counters.add(connection, "lease_steals")

    def _bring_back_exports(self) -> None:
        resources = self._resources
        with resources.database.read() as connection:
            expired = export_leases.list_expired(connection, BATCH)
        for export in expired:
            cause = f"The worker of attempt {export.attempts} fell silent"
            # It may have ended since it was listed; its epoch tells.
            with suppress(LeaseLost), resources.database.write() as connection:
                export_leases.lose(connection, export, resources.settings.max_attempts, cause)
                counters.add(connection, "lease_steals")

    def _dispatch(self) -> None:
        resources = self._resources
        after_seconds = resources.settings.redispatch_after_seconds
        with resources.database.read() as connection:
            job_ids = leases.list_undispatched(connection, after_seconds, BATCH)
            export_ids = export_leases.list_undispatched(connection, after_seconds, BATCH)
        for line, ids, mark in (
            (JOBS, job_ids, leases.mark_dispatched),
            (EXPORTS, export_ids, export_leases.mark_dispatched),
        ):
            is_sent = self._send(line, ids) if ids else None
            if is_sent is not None:
                with resources.database.write() as connection:
                    mark(connection, ids, is_sent=is_sent)

    def _send(self, line: Line, ids: list[str]) -> bool | None:
        """Say whether messages were sent, or enough wait already; None if the broker is away."""
        celery = self._resources.celery
        try:
            # Each message makes a worker take every job there is: while this many wait, all
            # workers are busy, and more would pile up for as long as they are.
            is_enough = count_waiting(celery, line) >= BATCH
            if not is_enough:
                send_wake_ups(celery, ids, line)
        except Exception as error:  # Any client's way of saying that the broker is away.
            if not self._broker_is_down:
                _log.warning("the broker cannot be reached, jobs wait: %s", error)
            self._broker_is_down = True
            return None
        self._broker_is_down = False
        return not is_enough

    def _delete_garbage(self) -> None:
        resources = self._resources
        deleted = garbage.sweep_jobs(
            resources.database, resources.storage, resources.settings.lease_ttl_seconds
        )
        deleted += garbage.sweep_abandoned(resources.storage)
        if time.monotonic() >= self._next_orphans:
            deleted += garbage.sweep_orphans(resources.database, resources.storage)
            deleted += garbage.sweep_batches(resources.database, resources.storage)
            self._next_orphans = time.monotonic() + ORPHANS_INTERVAL_SECONDS
        if deleted:
            _log.info("%d things that nothing refers to were deleted from storage", deleted)

    def _expire_files(self) -> None:
        with self._resources.database.read() as connection:
            expired = files.list_expired(connection, BATCH)
        for file in expired:
            with self._resources.database.write() as connection:
                files.remove(connection, file.project_id, file.id)
            self._resources.storage.delete(file.storage_key)
