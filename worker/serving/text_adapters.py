"""The adapters of text generation, in tiers: known, in memory, in a slot of their base model.

A name that was loaded once is known until it is unloaded: its files are read again whenever its
weights are not in memory. In each tier the least recently used make room for others; those that
are pinned never do.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.domain.errors import InvalidInput, NotFound, TooManyRequests, Unavailable
from worker.serving.adapter_memory import AdapterMemory
from worker.serving.adapter_reading import AdapterSource, read_adapter
from worker.serving.adapters import purpose_of
from worker.serving.base import ServedBase
from worker.serving.digests import Digests
from worker.serving.known_adapter import KnownAdapter
from worker.serving.own_models import OwnModels
from worker.serving.served_bases import ServedBases
from worker.serving.served_model import ServedModel
from worker.serving.settings import EngineSettings

logger = logging.getLogger(__name__)

# A name and what it stands for take some hundred bytes.
_MAX_KNOWN = 20_000
# A slot is free again when the answers of its adapter have ended.
_LOOK_EVERY_SECONDS = 0.01


class TextAdapters:
    """Adapters by name. Used on the event loop alone."""

    def __init__(
        self, settings: EngineSettings, bases: ServedBases, own: OwnModels, digests: Digests
    ) -> None:
        self._settings = settings
        self._bases = bases
        self._own = own
        self._digests = digests
        # In both the last used is the last in order.
        self._known: OrderedDict[str, KnownAdapter] = OrderedDict()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._memory = AdapterMemory(
            settings.max_adapters, settings.max_adapter_bytes, self._is_idle, self._detach
        )
        self._kept: Counter[str] = Counter()
        self._slot_numbers = itertools.count(1)
        self._loading = asyncio.Lock()
        # Of its own, so that who waits for a slot holds up nobody who needs none.
        self._slotting = asyncio.Lock()
        self._waiting = 0

    def find(self, name: str) -> KnownAdapter | None:
        return self._known.get(name)

    async def add(self, name: str, source: AdapterSource) -> None:
        """Let a name stand for an adapter that can answer from now on; twice is not an error.

        Raises:
            InvalidInput: the name stands for something else, or the adapter is damaged or was
                trained for something else; the message says which.
            Unavailable: every place is taken by an adapter in use.
        """
        is_new = name not in self._known
        await self._learn(name, source)
        try:
            await self.serve(name)
        except InvalidInput:
            # It fits no slot: the next load says so again.
            if is_new and name in self._known:
                self.remove(name)
            raise

    async def prefetch(self, name: str, source: AdapterSource) -> None:
        """Put an adapter into memory that nobody waits for yet.

        Nothing is done unless its base model is in service. Raises: as `add` does.
        """
        _, base_name = await asyncio.to_thread(purpose_of, source.directory)
        if base_name is not None and self._bases.find(base_name) is not None:
            await self._learn(name, source)

    async def serve(self, name: str) -> ServedModel:
        """Return a known adapter as one that can answer now, reading it again if need be.

        Raises:
            NotFound: it is not known, or its files are gone.
            InvalidInput: its files have been damaged.
            TooManyRequests: too many wait for a slot.
            Unavailable: every place stayed taken by adapters in use.
        """
        known = self._known.get(name)
        if known is None:
            raise _not_found(name)
        self._known.move_to_end(name)
        if known.is_alone:
            own = await self._own.get(
                name, known.base, known.source.directory, self._kept.__contains__
            )
            return known.served(own, None)
        if name not in self._slots:
            await self._put_into_slot(known)
        self._memory.get(name)
        self._slots.move_to_end(name)
        return known.served(known.base, self._slots[name].name)

    @contextmanager
    def keeping(self, names: list[str]) -> Iterator[None]:
        """Leave adapters where they are while the block lasts; `names` may grow meanwhile."""
        try:
            yield
        finally:
            self._kept.subtract(names)
            self._kept += Counter()

    def keep(self, name: str) -> None:
        """Leave an adapter where it is until `keeping` gives it up."""
        self._kept[name] += 1

    def remove(self, name: str) -> None:
        """Forget a name; its running answers go on. Raises: NotFound."""
        if name not in self._known:
            raise NotFound(f"no adapter {name!r} is loaded", param="lora_name")
        del self._known[name]
        self._own.drop(name)
        self._memory.drop(name)

    def models(self) -> list[ServedModel]:
        """Return what every known name stands for, whether it is in memory or not."""
        return [one.served(one.base, None) for one in self._known.values()]

    def stats(self) -> dict[str, Any]:
        """Return how full each tier is; `adapters` are those in memory, the last used last."""
        return {
            "adapters": [*self._memory.names, *self._own.in_memory],
            "adapters_known": len(self._known),
            "adapters_in_slots": len(self._slots),
            "adapter_bytes": self._memory.bytes,
        }

    async def _learn(self, name: str, source: AdapterSource) -> None:
        async with self._loading:
            known = self._known.get(name)
            if known is None:
                await self._read(name, source)
                logger.info("loaded adapter %s from %s", name, source.directory)
            elif known.source != source:
                raise InvalidInput(f"the name {name!r} is taken", param="lora_name")

    async def _put_into_slot(self, known: KnownAdapter) -> None:
        if self._waiting >= self._settings.max_queued:
            raise TooManyRequests("as many requests wait for an adapter as the engine accepts")
        self._waiting += 1
        try:
            async with self._slotting:
                if known.name in self._slots:
                    return
                async with self._loading:
                    # Before anybody waits or makes room: it may be gone.
                    await self._have_in_memory(known)
                await self._free_a_slot()
                async with self._loading:
                    # Others were read meanwhile.
                    await self._have_in_memory(known)
                    await self._attach(known)
        finally:
            self._waiting -= 1

    async def _attach(self, known: KnownAdapter) -> None:
        self._refuse_if_gone(known)
        slot = f"{known.name}#{next(self._slot_numbers)}"
        await asyncio.wrap_future(known.base.loop.attach(slot, self._memory.get(known.name)))
        if self._known.get(known.name) is not known:
            known.base.loop.detach(slot)
        self._refuse_if_gone(known)
        self._slots[known.name] = _Slot(slot, known.base)

    def _refuse_if_gone(self, known: KnownAdapter) -> None:
        """Raises: NotFound, if the name was removed in the meantime."""
        if self._known.get(known.name) is not known:
            raise _not_found(known.name)

    async def _have_in_memory(self, known: KnownAdapter) -> None:
        """Read an adapter again that had to make room. Raises: NotFound, if it is gone."""
        if known.name in self._memory:
            return
        self._refuse_if_gone(known)
        try:
            await self._read(known.name, known.source)
        except InvalidInput as error:
            if known.source.directory.exists():
                raise
            # Deleted while this engine could not be told.
            self._known.pop(known.name, None)
            raise _not_found(known.name) from error

    async def _read(self, name: str, source: AdapterSource) -> None:
        before = self._known.get(name)
        read = await read_adapter(source, self._bases, self._digests)
        if self._known.get(name) is not before:
            raise _not_found(name)
        if read.weights is not None:
            self._memory.put(name, read.weights)
        if before is None:
            self._known[name] = KnownAdapter.of(name, source, read)
            if len(self._known) > _MAX_KNOWN:
                self._forget_one()

    async def _free_a_slot(self) -> None:
        deadline = time.monotonic() + self._settings.queue_timeout_seconds
        while len(self._slots) >= self._settings.adapter_slots:
            victim = next((one for one in self._slots if self._is_idle(one)), None)
            if victim is not None:
                self._detach(victim)
            elif time.monotonic() > deadline:
                raise Unavailable("every slot is taken by an adapter in use; try again")
            else:
                await asyncio.sleep(_LOOK_EVERY_SECONDS)

    def _is_idle(self, name: str) -> bool:
        """Say whether an adapter may make room."""
        if name in self._settings.pinned_adapters or name in self._kept:
            return False
        slot = self._slots.get(name)
        return slot is None or slot.base.loop.is_idle(slot.name)

    def _forget_one(self) -> None:
        in_memory = {*self._memory.names, *self._own.in_memory}
        if (name := next((one for one in self._known if one not in in_memory), None)) is not None:
            del self._known[name]

    def _detach(self, name: str) -> None:
        if (slot := self._slots.pop(name, None)) is not None:
            slot.base.loop.detach(slot.name)


@dataclass(frozen=True, slots=True)
class _Slot:
    """An adapter's name in the loop of its base model; another one each time."""

    name: str
    base: ServedBase


def _not_found(name: str) -> NotFound:
    return NotFound(f"no model {name!r} is loaded", param="model", code="model_not_found")
