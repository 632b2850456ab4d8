"""The base models of text generation that are in service."""

import asyncio
import logging
import time
from collections.abc import Callable

from app.base_models import InstalledBaseModel
from app.domain.task_routes import CHAT, refuse_route_of_base
from worker.serving.base import ServedBase
from worker.serving.loop import LoopLimits
from worker.serving.served_model import ServedModel, fingerprint
from worker.serving.trunk_loading import LoadTrunk
from worker.trunk.trunk import Trunk

logger = logging.getLogger(__name__)

FindBase = Callable[[str], InstalledBaseModel]


class ServedBases:
    """Base models by their ids and names, each with its loop. Used on the event loop alone.

    Args:
        find_base: see `Engine`.
        load_trunk: see `Engine`.
        limits: of each loop.
    """

    def __init__(self, find_base: FindBase, load_trunk: LoadTrunk, limits: LoopLimits) -> None:
        self._find_base = find_base
        self._load_trunk = load_trunk
        self._limits = limits
        self._models: dict[str, ServedModel] = {}  # By id and by every other name asked for.
        self._loading = asyncio.Lock()

    def find(self, name: str) -> ServedModel | None:
        """Return a base model if it is loaded."""
        return self._models.get(name)

    async def load(self, name: str) -> ServedModel:
        """Load a base model unless it is loaded. Raises: NotFound, InvalidInput."""
        if name not in self._models:
            files = await asyncio.to_thread(self._find_base, name)
            refuse_route_of_base(name, files.tasks, CHAT)
            async with self._loading:
                if files.id not in self._models:
                    base = await self.serve(files, lambda: self._load_trunk(files.directory))
                    print_ = fingerprint(base.numbers, files.revision)
                    self._models[files.id] = ServedModel(files.id, base, files.directory, print_)
                self._models[name] = self._models[files.id]
        return self._models[name]

    async def serve(self, files: InstalledBaseModel, load: Callable[[], Trunk]) -> ServedBase:
        """Return weights with a loop of their own.

        Args:
            files: the base model that they are, or were tuned from.
            load: reads them into memory. Runs on a thread.
        """
        started = time.monotonic()
        trunk = await asyncio.to_thread(load)
        logger.info("loaded weights of %s in %.1f s", files.id, time.monotonic() - started)
        return ServedBase(files, trunk, self._limits, asyncio.get_running_loop())

    def models(self) -> list[ServedModel]:
        """Return each base model once."""
        return list({model.name: model for model in self._models.values()}.values())

    def close(self) -> None:
        for model in self.models():
            model.base.close()
