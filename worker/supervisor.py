"""Claims jobs and sees them through: one at a time, in a trainer that stays warm in between."""

import errno
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from app.base_models import ensure_installed
from app.db.repositories import adapters, counters, jobs, leases
from app.db.repositories.jobs import Job
from app.domain.errors import DomainError, LeaseLost, StorageFull, Unavailable
from app.domain.job_spec import JobSpec
from app.domain.job_state import TERMINAL
from app.domain.methods import METHODS
from app.domain.tasks import TASKS
from app.resources import Resources
from worker.lease import DeadlineFile, Lease
from worker.recorder import Recorder
from worker.room import Room
from worker.trainer import Trainer, TrainerDied, trainer_environment

POLL_SECONDS = 0.1

_log = logging.getLogger("tunesmith.worker")


class Supervisor:
    """Runs queued jobs until none is left or it is told to stop.

    `drain` may be called from any thread at any time: one caller at a time works, and no wish to
    drain that came while it worked is forgotten.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._busy = threading.Lock()
        self._trainer: Trainer | None = None
        self._room = Room(resources.storage, resources.settings.min_free_bytes, self._stopping)

    def warm_up(self) -> None:
        """Start the trainer, whose imports take seconds, ahead of the first job."""
        with self._busy:
            self._ensure_trainer()

    def drain(self) -> None:
        """Run every job that can be claimed."""
        self._wanted.set()
        while self._wanted.is_set() and self._busy.acquire(blocking=False):
            try:
                self._wanted.clear()
                self._room.wait()
                while not self._stopping.is_set() and self._run_next():
                    self._room.wait()
            finally:
                self._busy.release()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Give the running job back at its next step boundary, and claim no other."""
        self._stopping.set()

    def close(self) -> None:
        """End the trainer. Call after `stop`."""
        self.stop()
        with self._busy:
            if self._trainer is not None:
                self._trainer.close(grace_seconds=2)

    def _run_next(self) -> bool:
        try:
            deadline_file = DeadlineFile()
        except OSError as error:
            _log.error("cannot write to the directory of temporary files: %s", error)
            self._room.was_missing()
            return True
        try:
            return self._claim_and_run(deadline_file)
        finally:
            deadline_file.close()

    def _claim_and_run(self, deadline_file: DeadlineFile) -> bool:
        settings = self._resources.settings
        claimed_at = time.monotonic()
        try:
            with self._resources.database.write() as connection:
                job = leases.claim_next(connection, self._owner, settings.lease_ttl_seconds)
        except Unavailable as error:
            _log.warning("cannot claim a job: %s", error.message)
            return False
        if job is None:
            return False
        _log.info("job %s: attempt %d claimed", job.id, job.attempts)
        lease = Lease(
            self._resources.database,
            job.id,
            job.lease_epoch,
            ttl_seconds=settings.lease_ttl_seconds,
            claimed_at=claimed_at,
            deadline_file=deadline_file,
        )
        try:
            self._run(job, lease, deadline_file.path)
        finally:
            lease.close()
        return True

    def _run(self, job: Job, lease: Lease, deadline_path: Path) -> None:
        recorder = Recorder(
            self._resources.database,
            self._resources.storage,
            job,
            lease,
            self._resources.settings.max_attempts,
        )
        try:
            command = self._train_command(job, lease, deadline_path)
            trainer = self._ensure_trainer()
            trainer.send(command)
            self._follow(trainer, lease, recorder)
        except LeaseLost:
            self._let_go(job, lease)
        except TrainerDied as death:
            _log.warning("job %s: the trainer died by %s", job.id, death.cause)
            with suppress(LeaseLost):
                recorder.crashed(death.cause, death.log_tail)
        except StorageFull as error:
            self._put_off(recorder, error)
        except DomainError as error:
            with suppress(LeaseLost):
                recorder.failed(error.code or "training_failed", error.message, error.param)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._put_off(recorder, StorageFull())
                return
            _log.exception("job %s: the attempt failed", job.id)
            with suppress(LeaseLost):
                recorder.crashed(str(error), "")

    def _put_off(self, recorder: Recorder, error: StorageFull) -> None:
        self._room.was_missing()
        with suppress(LeaseLost):
            recorder.out_of_room(error.message)

    def _train_command(self, job: Job, lease: Lease, deadline_path: Path) -> dict[str, Any]:
        assert job.spec is not None
        spec = JobSpec.from_json(job.spec)
        base = ensure_installed(
            self._resources.catalogue.get(spec.base_model),
            self._resources.settings.models_dir,
        )
        return {
            "op": "train",
            "epoch": lease.epoch,
            "spec": msgspec.to_builtins(spec),
            "implementation": TASKS[spec.task].implementation
            or METHODS[spec.method].implementation,
            "base": {
                "id": base.id,
                "directory": str(base.directory),
                "revision": base.revision,
                "name_or_path": base.name,
            },
            "storage_url": self._resources.settings.storage_url,
            "checkpoint_prefix": f"jobs/{job.id}/e{lease.epoch}",
            "resume_from": job.resume_prefix,
            "deadline_file": str(deadline_path),
            "checkpoint_interval_seconds": self._resources.settings.checkpoint_interval_seconds,
            "output_model": job.output_model,
            "epoch_ends": self._epoch_ends(job),
            "step_log": self._resources.settings.step_log_path
            and str(self._resources.settings.step_log_path),
        }

    def _epoch_ends(self, job: Job) -> dict[int, str]:
        with self._resources.database.read() as connection:
            named = adapters.list_of_job(connection, job.id)
        return {one.step: one.checkpoint_prefix for one in named}

    def _follow(self, trainer: Trainer, lease: Lease, recorder: Recorder) -> None:
        """Record what the trainer tells until the attempt is over.

        Raises:
            LeaseLost: the job is someone else's now, or it was cancelled.
            TrainerDied: it did, or it hung and was killed.
            StorageFull: there is no room for what the attempt has to write.
        """
        reason: str | None = None
        heard_at = time.monotonic()
        while True:
            if lease.is_lost:
                raise LeaseLost()
            if reason is None and (reason := self._reason_to_stop(lease)) is not None:
                trainer.send({"op": "stop"})
            message = trainer.receive(POLL_SECONDS)
            if message is None:
                self._kill_if_it_hangs(trainer, heard_at)
                continue
            heard_at = time.monotonic()
            # What an earlier, abandoned attempt still had to say is of no interest.
            if message.get("epoch") != lease.epoch:
                continue
            if message.get("job_id") == lease.job_id and _record(recorder, message, reason or ""):
                return

    def _reason_to_stop(self, lease: Lease) -> str | None:
        if self._stopping.is_set():
            return "The worker shuts down"
        return "Stopped at the end of its step" if lease.is_pause_requested else None

    def _kill_if_it_hangs(self, trainer: Trainer, heard_at: float) -> None:
        limit = self._resources.settings.stall_timeout_seconds
        if time.monotonic() - heard_at > limit:
            trainer.kill()
            raise TrainerDied(f"a kill after {limit:.0f} s without a word", trainer.log_tail)

    def _let_go(self, job: Job, lease: Lease) -> None:
        """Stop the trainer's run: politely if the job has ended, at once if another may hold it."""
        trainer = self._trainer
        has_ended = self._has_ended(job)
        if has_ended:
            _log.info("job %s: ended by others, attempt %d stops", job.id, job.attempts)
        else:
            _log.warning("job %s: attempt %d lost its lease", job.id, job.attempts)
            self._count_fenced_write()
        if trainer is not None and not (has_ended and self._abandon(trainer, lease)):
            trainer.kill()

    def _has_ended(self, job: Job) -> bool:
        try:
            with self._resources.database.read() as connection:
                current = jobs.find(connection, job.id)
        except Unavailable:
            return False
        return current is not None and current.status in TERMINAL

    def _count_fenced_write(self) -> None:
        with suppress(Unavailable), self._resources.database.write() as connection:
            counters.add(connection, "fenced_writes")

    def _abandon(self, trainer: Trainer, lease: Lease) -> bool:
        """Let a cancelled run end at its next step, which keeps the trainer warm."""
        trainer.send({"op": "abandon"})
        deadline = time.monotonic() + self._resources.settings.stop_grace_seconds
        while time.monotonic() < deadline:
            try:
                message = trainer.receive(POLL_SECONDS)
            except TrainerDied:
                return True
            if message is not None and message["type"] in (
                "stopped",
                "finished",
                "failed",
            ):
                return True
        return False

    def _ensure_trainer(self) -> Trainer:
        if self._trainer is None or not self._trainer.is_alive:
            self._trainer = Trainer(trainer_environment(os.environ))
        return self._trainer


def _record(recorder: Recorder, message: dict[str, Any], reason: str) -> bool:
    """Record one message; True when it ends the attempt.

    Args:
        reason: why the run was told to stop, if it was.
    """
    match message["type"]:
        case "prepared":
            recorder.prepared(message)
        case "step":
            recorder.step(message)
        case "validation":
            recorder.validation(message)
        case "checkpoint":
            recorder.checkpoint(message)
        case "finished":
            recorder.finished(message)
            return True
        case "stopped":
            recorder.released(message, reason)
            return True
        case "failed" if message["code"] == "checkpoint_corrupt":
            recorder.fall_back(message["message"])
            return True
        case "failed" if message["code"] == "io_error":
            recorder.crashed(message["message"], "")
            return True
        case "failed" if message["code"] == StorageFull.code:
            raise StorageFull(message["message"])
        case "failed":
            recorder.failed(message["code"], message["message"], message["param"])
            return True
    return False
