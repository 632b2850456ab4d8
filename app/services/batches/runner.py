"""The runner of batches: claims them and brings each to its next status, in every API process.

Whatever dies in the middle, the lease of a batch lapses and another runner, or the next one, goes
on from what was written down.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import BinaryIO, TypeVar

from app.db.repositories import batch_chunks, batch_leases, batches
from app.db.repositories.batch_chunks import StoredChunk
from app.db.repositories.batches import Batch
from app.domain.batches import BatchError, BatchStatus
from app.domain.errors import LeaseLost, NotFound, Unavailable
from app.resources import Resources
from app.services.batches.asking import PATIENCE, Asking, Patience
from app.services.batches.ending import end
from app.services.batches.holding import Hold
from app.services.batches.ledger import Ledger
from app.services.batches.reading import open_input
from app.services.batches.validation import validate
from app.services.batches.wire import Wire

# So many projects have a batch whose lines are asked, and so many batches are held in all.
MAX_ASKED = 100
MAX_HELD = 200
LOOK_EVERY_SECONDS = 1.0
FAILED_PAUSE_SECONDS = 5.0

_log = logging.getLogger("tunesmith.batches")

T = TypeVar("T")


class BatchRunner:
    """Works on batches in the event loop that it was started in, until it is closed."""

    def __init__(self, resources: Resources, wire: Wire, patience: Patience = PATIENCE) -> None:
        settings = resources.settings
        self._resources = resources
        self._wire = wire
        self._patience = patience
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._ttl_seconds = settings.lease_ttl_seconds
        self._places = asyncio.Semaphore(settings.batches_parallel)
        self._held: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        # Apart, so that no lease lapses because an input is long.
        self._short = ThreadPoolExecutor(4, "batches")
        self._long = ThreadPoolExecutor(2, "batches, long")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_closing = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = self._loop.create_task(self._run())

    def poke(self) -> None:
        """Look for batches soon; from any thread. Never blocks."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def close(self) -> None:
        """Write down what was answered, and leave the batches to whoever comes next."""
        self._is_closing = True
        self._wake.set()
        if self._running is not None:
            await self._running
        held = list(self._held.values())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch in held:
            with suppress(Unavailable):
                await self._in_thread(partial(self._give_back, batch))
        self._short.shutdown()
        self._long.shutdown()

    async def _run(self) -> None:
        while not self._is_closing:
            pause_seconds = self._resources.settings.sweep_interval_seconds
            try:
                while len(self._held) < MAX_HELD and (batch := await self._in_thread(self._claim)):
                    self._begin(batch)
            except Unavailable as error:
                _log.warning("batches wait: %s", error.message)
                pause_seconds = max(pause_seconds, FAILED_PAUSE_SECONDS)
            except Exception:  # The runner must outlive whatever goes wrong in one round.
                _log.exception("cannot look for batches; trying again")
                pause_seconds = max(pause_seconds, FAILED_PAUSE_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_seconds)
            self._wake.clear()

    def _claim(self) -> Batch | None:
        # Of a project one batch at a time: the next would only make the first one slower.
        asked = [one for one in self._held.values() if one.status is BatchStatus.IN_PROGRESS]
        busy = {batch.project_id for batch in asked} if len(asked) < MAX_ASKED else None
        database = self._resources.database
        with database.read() as connection:
            if not batch_leases.has_claimable(connection, busy):
                return None
        with database.write() as connection:
            return batch_leases.claim_next(connection, self._owner, self._ttl_seconds, busy)

    def _begin(self, batch: Batch) -> None:
        def forget(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            del self._held[batch.id]
            self._wake.set()

        self._held[batch.id] = batch
        task = asyncio.create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(forget)

    async def _work(self, batch: Batch) -> None:
        hold = Hold(self._resources.database, batch, self._ttl_seconds)
        after_seconds = 0.0
        try:
            await self._advance(batch, hold)
        except LeaseLost as error:
            _log.info("%s", error.message)
        except Unavailable as error:
            _log.warning("%s waits: %s", batch.id, error.message)
            after_seconds = FAILED_PAUSE_SECONDS
        except Exception:  # One batch's trouble must not hold up the others.
            _log.exception("cannot go on with %s for now", batch.id)
            after_seconds = FAILED_PAUSE_SECONDS
        with suppress(Unavailable):
            await self._in_thread(partial(self._give_back, batch, after_seconds))

    async def _advance(self, batch: Batch, hold: Hold) -> None:
        try:
            if batch.status is BatchStatus.VALIDATING:
                await self._validate(batch, hold)
                return
            if batch.status is BatchStatus.IN_PROGRESS:
                await self._ask(batch, hold)
                batch = await self._in_thread(partial(self._close, batch))
            await self._kept(hold, batch, partial(end, self._resources, hold, batch))
        except NotFound as error:
            # Content that a row names is gone: nobody but the operator can have taken it.
            _log.error("%s fails: %s", batch.id, error.message)
            gone = BatchError(
                "input_file_missing", "Content of the batch is gone from the storage."
            )
            await self._in_thread(partial(self._fail, batch, gone))

    async def _validate(self, batch: Batch, hold: Hold) -> None:
        if (await self._in_thread(hold.look)).is_expired:
            # Whatever keeps it from being validated shall not do so for ever.
            late = BatchError("batch_expired", "The input could not be checked in time.")
            await self._in_thread(partial(self._fail, batch, late))
            return
        await self._kept(hold, batch, partial(validate, self._resources, self._wire, hold, batch))

    async def _ask(self, batch: Batch, hold: Hold) -> None:
        stream, chunks = await self._in_thread(partial(self._open, batch))
        asking = Asking(
            self._resources,
            self._wire,
            batch,
            Ledger(self._resources, hold, next_number=len(chunks) + 1),
            stream=stream,
            done={number for chunk in chunks for number in chunk.lines},
            places=self._places,
            parallel=self._resources.settings.batch_parallel,
            patience=self._patience,
            in_thread=self._in_thread,
        )
        await asking.run()

    def _open(self, batch: Batch) -> tuple[BinaryIO, list[StoredChunk]]:
        with self._resources.database.read() as connection:
            chunks = batch_chunks.list_of_batch(connection, batch.id)
        return open_input(self._resources, batch), chunks

    def _close(self, batch: Batch) -> Batch:
        """Return the batch as it is once nothing more of it is asked."""
        with self._resources.database.write() as connection:
            current = batches.get(connection, batch.project_id, batch.id)
            if current.status is BatchStatus.CANCELLING:
                return current
            return batch_leases.move(
                connection,
                batch.id,
                batch.lease_epoch,
                BatchStatus.IN_PROGRESS,
                BatchStatus.FINALIZING,
                keep_lease=True,
            )

    def _fail(self, batch: Batch, error: BatchError) -> None:
        with self._resources.database.write() as connection:
            batch_leases.fail(connection, batch.id, batch.lease_epoch, batch.status, [error])

    def _give_back(self, batch: Batch, after_seconds: float = 0) -> None:
        with self._resources.database.write() as connection:
            batch_leases.give_back(
                connection, batch.id, batch.lease_epoch, after_seconds=after_seconds
            )

    async def _kept(self, hold: Hold, batch: Batch, work: Callable[[], None]) -> None:
        """Do what takes long in a thread, and keep the lease meanwhile.

        Raises:
            LeaseLost: another holds the batch, or its status is another by now.
        """
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._long, work)
        try:
            while not (await asyncio.wait({working}, timeout=LOOK_EVERY_SECONDS))[0]:
                with suppress(Unavailable):
                    standing = await self._in_thread(hold.look)
                    if standing.status is not batch.status:
                        raise LeaseLost(f"{batch.id} is {standing.status.value} by now")
        except BaseException:
            hold.end()
            await asyncio.wait({working})
            raise
        working.result()

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._short, work)
