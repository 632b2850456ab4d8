"""Claims jobs and sees them through: one at a time, in a trainer that stays warm in between."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy.exc import DBAPIError

from app.base_models import ensure_installed
from app.db.repositories import jobs, leases
from app.db.repositories.jobs import Job
from app.domain.errors import DomainError, LeaseLost
from app.domain.job_spec import JobSpec
from app.domain.job_state import TERMINAL
from app.domain.methods import METHODS
from app.resources import Resources
from worker.lease import Lease
from worker.recorder import Recorder
from worker.trainer import Trainer, TrainerDied

POLL_SECONDS = 0.1

_SECRETS = frozenset({"DATABASE_URL", "BROKER_URL", "ENGINE_API_KEY"})

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
                while not self._stopping.is_set() and self._run_next():
                    pass
            finally:
                self._busy.release()

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
        settings = self._resources.settings
        claimed_at = time.monotonic()
        try:
            with self._resources.database.write() as connection:
                job = leases.claim_next(connection, self._owner, settings.lease_ttl_seconds)
        except DBAPIError as error:
            _log.warning("cannot claim a job, the database is away: %s", error.orig)
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
        )
        try:
            self._run(job, lease)
        finally:
            lease.close()
        return True

    def _run(self, job: Job, lease: Lease) -> None:
        recorder = Recorder(self._resources.database, self._resources.storage, job, lease)
        try:
            command = self._train_command(job, lease)
            trainer = self._ensure_trainer()
            trainer.send(command)
            self._follow(trainer, lease, recorder)
        except LeaseLost:
            self._let_go(job, lease)
        except TrainerDied as death:
            _log.warning("job %s: the trainer died by %s", job.id, death.cause)
            with suppress(LeaseLost):
                recorder.crashed(death.cause, death.log_tail, self._resources.settings.max_attempts)
        except DomainError as error:
            with suppress(LeaseLost):
                recorder.failed(error.code or "training_failed", error.message, error.param)

    def _train_command(self, job: Job, lease: Lease) -> dict[str, Any]:
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
            "implementation": METHODS[spec.method].implementation,
            "base": {
                "id": base.id,
                "directory": str(base.directory),
                "revision": base.revision,
                "name_or_path": base.name,
            },
            "storage_url": self._resources.settings.storage_url,
            "checkpoint_prefix": f"jobs/{job.id}/e{lease.epoch}",
            "resume_from": job.resume_prefix,
            "deadline_file": str(lease.deadline_file),
            "checkpoint_interval_seconds": self._resources.settings.checkpoint_interval_seconds,
        }

    def _follow(self, trainer: Trainer, lease: Lease, recorder: Recorder) -> None:
        """Record what the trainer tells until the attempt is over.

        Raises:
            LeaseLost: the job is someone else's now, or it was cancelled.
            TrainerDied: it did.
        """
        is_told_to_stop = False
        while True:
            if lease.is_lost:
                raise LeaseLost()
            if self._stopping.is_set() and not is_told_to_stop:
                trainer.send({"op": "stop"})
                is_told_to_stop = True
            message = trainer.receive(POLL_SECONDS)
            # What an earlier, abandoned attempt still had to say is of no interest.
            if message is None or message.get("epoch") != lease.epoch:
                continue
            if message.get("job_id") == lease.job_id and _record(recorder, message):
                return

    def _let_go(self, job: Job, lease: Lease) -> None:
        """Stop the trainer's run: politely if the job has ended, at once if another may hold it."""
        _log.info("job %s: attempt %d lost its lease", job.id, job.attempts)
        trainer = self._trainer
        if trainer is None:
            return
        if not self._has_ended(job) or not self._abandon(trainer, lease):
            trainer.kill()

    def _has_ended(self, job: Job) -> bool:
        try:
            with self._resources.database.read() as connection:
                current = jobs.find(connection, job.id)
        except DBAPIError:
            return False
        return current is not None and current.status in TERMINAL

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
            self._trainer = Trainer(_trainer_environment(os.environ))
        return self._trainer


def _trainer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the trainer sees: no way into the database, the broker or the engine."""
    kept = {name: value for name, value in environment.items() if name not in _SECRETS}
    # Waiting threads that spin make each other late as soon as anything else wants the cores:
    # measured on two busy ones, a step is two to five times as fast when they sleep.
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept


def _record(recorder: Recorder, message: dict[str, Any]) -> bool:
    """Record one message; True when it ends the attempt."""
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
            recorder.released(message)
            return True
        case "failed" if message["code"] == "checkpoint_corrupt":
            recorder.restart_from_scratch(message["message"])
            return True
        case "failed":
            recorder.failed(message["code"], message["message"], message["param"])
            return True
    return False
