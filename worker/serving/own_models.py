"""Tuned models that share no batch: each has all weights of a base model for itself."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from app.domain.errors import Unavailable
from app.domain.registry import resolve
from worker.serving.base import ServedBase
from worker.serving.served_bases import ServedBases
from worker.serving.trunk_loading import LoadTrunk
from worker.trunk.trunk import Trunk

logger = logging.getLogger(__name__)

# By name, since `peft` takes seconds to import, which most engines never need.
_MERGE = "worker.tuning.merging:merge_into"
# A model's memory is free again when its last answer has ended.
_LOOK_EVERY_SECONDS = 0.05


class OwnModels:
    """Merged weights with loops of their own, the least recently used of which makes room."""

    def __init__(self, bases: ServedBases, load_trunk: LoadTrunk, limit: int) -> None:
        self._bases = bases
        self._load_trunk = load_trunk
        self._limit = limit
        self._models: OrderedDict[str, ServedBase] = OrderedDict()  # Last used, last in order.
        # Kept until they have ended, so that the engine's end ends them, too.
        self._leaving: dict[ServedBase, asyncio.Task[None]] = {}
        self._loading = asyncio.Lock()

    @property
    def in_memory(self) -> Mapping[str, ServedBase]:
        return self._models

    async def get(
        self, name: str, of: ServedBase, directory: Path, is_kept: Callable[[str], bool]
    ) -> ServedBase:
        """Return a model's merged weights, making them unless they are in memory.

        Args:
            is_kept: says of a name whether it may not make room, although nothing runs yet.

        Raises:
            Unavailable: every place is taken by a model in use.
        """
        async with self._loading:
            if name not in self._models:
                self._make_room(is_kept)

                def tune(base: Trunk) -> Trunk:
                    tuned: Trunk = resolve(_MERGE)(base, directory)
                    return tuned

                self._models[name] = await self._bases.serve(
                    of.files, lambda: self._load_trunk(of.files.directory, tune)
                )
        self._models.move_to_end(name)
        return self._models[name]

    def drop(self, name: str) -> None:
        """Let a model's memory go when its last answer is complete."""
        if name in self._models:
            base = self._models.pop(name)
            base.retire()
            self._leaving[base] = asyncio.create_task(self._see_off(base))

    def close(self) -> None:
        for task in self._leaving.values():
            task.cancel()
        for base in (*self._models.values(), *self._leaving):
            base.close()

    async def _see_off(self, base: ServedBase) -> None:
        while base.loop.is_alive:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        del self._leaving[base]

    def _make_room(self, is_kept: Callable[[str], bool]) -> None:
        while len(self._models) >= self._limit:
            name = next(
                (
                    one
                    for one, base in self._models.items()
                    if base.loop.is_idle(None) and not is_kept(one)
                ),
                None,
            )
            if name is None:
                raise Unavailable("every model with weights of its own is in use; try again")
            logger.info("dropped %s to make room", name)
            self.drop(name)
