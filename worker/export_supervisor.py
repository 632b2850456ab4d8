"""Claims exports and sees them through: one at a time, each in a process of its own.

It stands beside the supervisor of jobs, so that neither waits for the other. The process is given
a directory and no database: what it wrote is stored and named here, under the lease.
"""

import errno
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from app.base_models import ensure_installed
from app.db.repositories import export_leases, jobs
from app.db.repositories.exports import Export
from app.domain.errors import DomainError, LeaseLost, StorageFull, Unavailable
from app.domain.exports import EXPORT_FORMATS
from app.domain.job_spec import JobSpec
from app.resources import Resources
from worker.export_recorder import ExportRecorder
from worker.lease import Lease
from worker.room import Room
from worker.trainer import Trainer, TrainerDied, trainer_environment

POLL_SECONDS = 0.1

_MODULE = "worker.exporting"
_NOT_IN_A_FILENAME = re.compile(r"[^A-Za-z0-9._-]+")

_log = logging.getLogger("tunesmith.worker")


class ExportSupervisor:
    """Carries out queued exports until none is left or it is told to stop."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = threading.Event()
        self._room = Room(resources.storage, resources.settings.min_free_bytes, self._stopping)

    def drain(self) -> None:
        """Carry out every export that can be claimed. One caller at a time."""
        self._room.wait()
        while not self._stopping.is_set() and self._run_next():
            self._room.wait()

    def stop(self) -> None:
        """Give the running export back at once, and claim no other."""
        self._stopping.set()

    def _run_next(self) -> bool:
        settings = self._resources.settings
        claimed_at = time.monotonic()
        try:
            with self._resources.database.write() as connection:
                export = export_leases.claim_next(
                    connection, self._owner, settings.lease_ttl_seconds
                )
        except Unavailable as error:
            _log.warning("cannot claim an export: %s", error.message)
            return False
        if export is None:
            return False
        _log.info("%s: attempt %d claimed", export.id, export.attempts)
        lease = Lease(
            self._resources.database,
            export.id,
            export.lease_epoch,
            ttl_seconds=settings.lease_ttl_seconds,
            claimed_at=claimed_at,
            deadline_file=None,
            renew=export_leases.renew,
        )
        try:
            self._run(export, lease)
        finally:
            lease.close()
        return True

    def _run(self, export: Export, lease: Lease) -> None:
        recorder = ExportRecorder(
            self._resources.database,
            self._resources.storage,
            export,
            lease,
            self._resources.settings.max_attempts,
        )
        directory: Path | None = None
        try:
            directory = self._resources.storage.scratch()
            self._record(recorder, self._made(export, lease, directory))
        except LeaseLost:
            _log.info("%s: ended by others, attempt %d stops", export.id, export.attempts)
        except TrainerDied as death:
            _log.warning("%s: its process died by %s", export.id, death.cause)
            with suppress(LeaseLost):
                recorder.crashed(death.cause, death.log_tail)
        except StorageFull:
            self._put_off(recorder)
        except Unavailable as error:
            with suppress(LeaseLost):
                recorder.crashed(error.message)
        except DomainError as error:
            with suppress(LeaseLost):
                recorder.failed(error.code or "export_failed", error.message, error.param)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._put_off(recorder)
                return
            _log.exception("%s: the attempt failed", export.id)
            with suppress(LeaseLost):
                recorder.crashed(str(error))
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def _put_off(self, recorder: ExportRecorder) -> None:
        self._room.was_missing()
        with suppress(LeaseLost):
            recorder.released()

    def _made(self, export: Export, lease: Lease, into: Path) -> dict[str, Any] | None:
        """Return the last word of the export's process; None if the worker shuts down.

        Raises:
            LeaseLost: the export is someone else's now, or it was cancelled.
            TrainerDied: the process did, or it hung and was killed.
            DomainError: it cannot be started.
        """
        command = self._command(export, into)
        process = Trainer(trainer_environment(os.environ), _MODULE)
        limit_seconds = self._resources.settings.stall_timeout_seconds
        deadline = time.monotonic() + limit_seconds
        try:
            process.send(command)
            while not self._stopping.is_set():
                if lease.is_lost:
                    raise LeaseLost()
                if (message := process.receive(POLL_SECONDS)) is not None:
                    return message
                if time.monotonic() > deadline:
                    raise TrainerDied(f"a kill after {limit_seconds:.0f} s", process.log_tail)
        finally:
            process.kill()
        return None

    def _command(self, export: Export, into: Path) -> dict[str, Any]:
        with self._resources.database.read() as connection:
            job = jobs.get(connection, export.project_id, export.job_id)
        assert job.spec is not None
        base_model = self._resources.catalogue.get(export.base_model)
        base = ensure_installed(base_model, self._resources.settings.models_dir)
        chosen = EXPORT_FORMATS[export.format]
        return {
            "implementation": chosen.implementation,
            "format": export.format,
            "quantization": export.quantization,
            "limit": msgspec.to_builtins(chosen.limits[export.quantization]),
            "name": _filename(export),
            "base": {
                "id": base.id,
                "directory": str(base.directory),
                "revision": base.revision,
                "name_or_path": base.name,
            },
            "spec": msgspec.to_builtins(JobSpec.from_json(job.spec)),
            "storage_url": self._resources.settings.storage_url,
            "storage_prefix": export.storage_prefix,
            "provenance": {
                "model": export.model,
                "base_source": base_model.source,
                "base_revision": base_model.revision,
                "base_licence": base_model.licence,
                "report": job.report,
            },
            "into": str(into),
        }

    def _record(self, recorder: ExportRecorder, message: dict[str, Any] | None) -> None:
        if message is None:
            recorder.released()
        elif message["type"] == "finished":
            recorder.finished(message)
        elif message["code"] == StorageFull.code:
            raise StorageFull(message["message"])
        else:
            recorder.failed(
                message["code"], message["message"], message["param"], message["verification"]
            )


def _filename(export: Export) -> str:
    """Return how the export's files are called: as its model, without what file systems refuse."""
    model = _NOT_IN_A_FILENAME.sub("-", export.model.removeprefix("ft:"))
    return f"{model}-{export.format}-{export.quantization}"
