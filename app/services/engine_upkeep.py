"""What engines are told when nobody asks: which models are new, and which are gone.

Nothing depends on it: a model that an engine has not read yet is read at its first request, and
one that was deleted is not found by its row. Every API process does it; doing it twice does no
harm.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

from app.db.repositories import adapters
from app.db.repositories.adapters import Adapter
from app.domain.errors import DomainError
from app.resources import Resources
from app.services import models

# A job has succeeded: its model is in an engine's memory before most users can ask.
NEW_EVERY_SECONDS = 1.0
# What every engine has is compared with the rows, should a deletion have passed one by.
ALL_EVERY_SECONDS = 5.0
_NEW_AT_ONCE = 8
# An engine that hangs must not keep the others from being told.
READ_WITHIN_SECONDS = 30.0

_log = logging.getLogger("tunesmith.engines")


class EngineUpkeep:
    """Tells engines what they should know, on the event loop, until it is closed.

    Args:
        read_within_seconds: an engine that takes longer to read a model is not waited for.
    """

    def __init__(
        self, resources: Resources, read_within_seconds: float = READ_WITHIN_SECONDS
    ) -> None:
        self._resources = resources
        self._read_within_seconds = read_within_seconds
        self._task: asyncio.Task[None] | None = None
        self._newest_seen: float | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine upkeep")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def prefetch_new(self) -> None:
        """Let engines read the fine-tuned models that were made since the last call."""
        since = self._newest_seen
        newest = await asyncio.to_thread(self._newest, 0.0 if since is None else since)
        self._newest_seen = max((one.created_at for one in newest), default=since or 0.0)
        if since is not None:
            await self._prefetch(newest)

    async def prefetch_pinned(self) -> None:
        """Let engines read what the operator wants them to have in memory."""
        if self._resources.settings.pinned_adapters:
            await self._prefetch(await asyncio.to_thread(self._pinned))

    async def forget_deleted(self) -> None:
        """Let engines forget the models that they have and that are rows no more."""
        held = [one.name for one in await self._resources.engine.models()]
        gone = await asyncio.to_thread(self._gone, [one for one in held if one.startswith("ft:")])
        for name in gone:
            _log.info("%s was deleted: engines forget it", name)
            await self._resources.engine.forget(name)

    async def _run(self) -> None:
        next_all = 0.0
        while True:
            try:
                await self.prefetch_new()
                if time.monotonic() >= next_all:
                    await self.forget_deleted()
                    await self.prefetch_pinned()
                    next_all = time.monotonic() + ALL_EVERY_SECONDS
            except DomainError as error:
                _log.debug("engines were not told: %s", error)
            except Exception:
                _log.exception("engines could not be told")
            await asyncio.sleep(NEW_EVERY_SECONDS)

    async def _prefetch(self, wanted: Sequence[Adapter]) -> None:
        for adapter in wanted:
            try:
                files = await asyncio.to_thread(models.files_of, self._resources, adapter)
                async with asyncio.timeout(self._read_within_seconds):
                    await self._resources.engine.prefetch(files)
            except (DomainError, TimeoutError) as error:
                _log.info("%s was not read beforehand: %r", adapter.name, error)

    def _newest(self, since: float) -> list[Adapter]:
        with self._resources.database.read() as connection:
            return adapters.list_final_since(connection, since, _NEW_AT_ONCE)

    def _pinned(self) -> list[Adapter]:
        with self._resources.database.read() as connection:
            return adapters.list_named(connection, self._resources.settings.pinned_adapters)

    def _gone(self, names: Sequence[str]) -> set[str]:
        if not names:
            return set()
        with self._resources.database.read() as connection:
            return models.which_are_gone(connection, names)
