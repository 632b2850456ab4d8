"""One engine of several as the router sees it: how busy it is, and whether it answers."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.domain.errors import EngineUnavailable
from app.inference.endpoints import Endpoint
from app.inference.port import EngineClient, EngineModel, EngineWork

_log = logging.getLogger("tunesmith.inference")

# One look may fail because an engine is busy; a connection that is refused counts at once.
_FAILURES_UNTIL_AWAY = 2
# An engine whose base models are not told to us is asked for them this often.
_MODELS_EVERY_SECONDS = 10.0


class WatchedEngine:
    """An engine, its client and what is known of it.

    Args:
        is_asked_for_bases: whether the engine's own list says which base models it answers with.
            The built-in engine loads any of the catalogue when it is asked for.
    """

    def __init__(
        self, endpoint: Endpoint, client: EngineClient, *, is_asked_for_bases: bool
    ) -> None:
        self.endpoint = endpoint
        self.client = client
        self.outstanding = 0
        self.work: EngineWork | None = None
        self.is_up = True
        self._is_asked_for_bases = is_asked_for_bases and not endpoint.base_models
        self._bases: frozenset[str] | None = endpoint.base_models or None
        self._asked_for_bases_at = 0.0
        self._failures = 0
        self._to_forget: set[str] = set()
        self._telling = asyncio.Lock()

    @property
    def is_known(self) -> bool:
        """Whether it is known which base models it answers with."""
        return self._bases is not None or not self._is_asked_for_bases

    def answers_with(self, base_model: str | None) -> bool:
        return base_model is None or self._bases is None or base_model in self._bases

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as long as the block lasts."""
        self.outstanding += 1
        try:
            yield
        finally:
            self.outstanding -= 1

    async def look(self) -> None:
        """Find out whether it answers, and tell it what it missed while it was away."""
        try:
            await self._look()
        except Exception:  # A defect of ours, after which the next look must still be taken.
            _log.exception("engine %s could not be looked at", self.endpoint.url)

    def set_away(self, reason: str) -> None:
        """Ask others first from now on, until a look finds that it answers."""
        if self.is_up:
            _log.warning("engine %s is away: %s", self.endpoint.url, reason)
        self.is_up = False

    async def forget(self, adapter_name: str) -> None:
        """Let it unload an adapter, as soon as it can be told."""
        self._to_forget.add(adapter_name)
        if self.is_up:
            await self._tell_forgotten()

    async def models(self) -> Sequence[EngineModel]:
        """Return the models that it has; none of an engine that is away."""
        try:
            return await self.client.models() if self.is_up else []
        except EngineUnavailable:
            return []

    async def _look(self) -> None:
        if not await self.client.is_ready():
            self._failures += 1
            self.work = None
            if self._failures >= _FAILURES_UNTIL_AWAY:
                self.set_away("it does not say that it is ready")
            return
        self._failures = 0
        if not self.is_up:
            _log.warning("engine %s answers again", self.endpoint.url)
            self.is_up = True
            self._asked_for_bases_at = 0.0
        self.work = await self.client.work()
        await self._tell_forgotten()
        await self._ask_for_bases()

    async def _tell_forgotten(self) -> None:
        # One at a time: a look must not tell again what is just being told.
        async with self._telling:
            for name in tuple(self._to_forget):
                try:
                    await self.client.forget(name)
                except EngineUnavailable as error:
                    _log.warning("%s could not be told to forget: %s", self.endpoint.url, error)
                    return
                self._to_forget.discard(name)

    async def _ask_for_bases(self) -> None:
        now = time.monotonic()
        is_due = now - self._asked_for_bases_at >= _MODELS_EVERY_SECONDS
        if not self._is_asked_for_bases or not is_due:
            return
        try:
            models = await self.client.models()
        except EngineUnavailable as error:
            _log.warning("%s does not say what it answers with: %s", self.endpoint.url, error)
            return
        self._asked_for_bases_at = now
        self._bases = frozenset(one.name for one in models if one.parent is None)
