"""From an export's outcome to rows: every write is one short transaction under the lease."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import export_leases, exports, files
from app.db.repositories.exports import Export
from app.db.repositories.files import NewFile
from app.domain.errors import LeaseLost, StorageFull, Unavailable
from app.domain.exports import ExportStatus
from app.services.files import store_export
from app.storage import Storage
from worker.fenced_writes import write_until_taken
from worker.lease import Lease

LOG_TAIL_CHARACTERS = 2_000


class ExportRecorder:
    """Writes what becomes of one attempt at an export.

    Any method may raise LeaseLost: then it wrote nothing.
    """

    def __init__(
        self, database: Database, storage: Storage, export: Export, lease: Lease, max_attempts: int
    ) -> None:
        self._database = database
        self._storage = storage
        self._export = export
        self._lease = lease
        self._max_attempts = max_attempts

    def finished(self, message: dict[str, Any]) -> None:
        """Store the files, then name them and end the export in one transaction.

        Raises:
            StorageFull: nothing was stored.
        """
        stored: list[NewFile] = []

        def write(connection: Connection) -> None:
            exports.transition(
                connection,
                self._export.id,
                ExportStatus.SUCCEEDED,
                epoch=self._lease.epoch,
                result_files=[file.id for file in stored],
                verification=message["verification"],
                finished_at=now(),
                lease_expires_at=None,
            )
            for file in stored:
                files.add(connection, file)

        try:
            for path in message["files"]:
                stored.append(store_export(self._storage, self._export.project_id, Path(path)))
            self._write(write)
        except (LeaseLost, StorageFull):
            self._delete_unnamed(stored)
            raise

    def failed(
        self,
        code: str,
        text: str,
        param: str | None,
        verification: dict[str, Any] | None = None,
    ) -> None:
        """End the export for a reason that another attempt would meet again."""

        def write(connection: Connection) -> None:
            exports.transition(
                connection,
                self._export.id,
                ExportStatus.FAILED,
                epoch=self._lease.epoch,
                error={"code": code, "message": text, "param": param},
                verification=verification,
                finished_at=now(),
                lease_expires_at=None,
            )

        self._write(write)

    def crashed(self, cause: str, log_tail: str = "") -> None:
        """Queue the export again, or fail it if that was once too often.

        Args:
            cause: for people: "signal SIGKILL", "exit status 1".
            log_tail: the last lines that its process wrote.
        """
        tail = f". Its last lines:\n{log_tail[-LOG_TAIL_CHARACTERS:]}\n" if log_tail else ""

        def write(connection: Connection) -> None:
            export_leases.lose(
                connection, self._export, self._max_attempts, f"It was ended by {cause}{tail}"
            )

        self._write(write)

    def released(self) -> None:
        """Give the export back: the worker shuts down, or storage is full. It does not count."""

        def write(connection: Connection) -> None:
            export_leases.give_back(connection, self._export.id, self._lease.epoch, counts=False)

        self._write(write)

    def _delete_unnamed(self, stored: Sequence[NewFile]) -> None:
        """Delete what was stored and no row names; what a crash leaves here, the sweeper deletes.

        A write whose connection was lost may have been made, and then its repetition finds the
        lease gone: only the rows tell.
        """
        try:
            with self._database.read() as connection:
                named = files.list_known(connection, [file.id for file in stored])
        except Unavailable:
            return
        for file in stored:
            if file.id not in named:
                self._storage.delete(file.storage_key)

    def _write(self, write: Callable[[Connection], None]) -> None:
        write_until_taken(self._database, self._lease, write)
