"""Models of tasks beside text generation, by name: tuned ones, and base models that can answer."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput, NotFound, Unavailable
from app.domain.registry import resolve
from app.domain.task_routes import FEATURE_EXTRACTION, refuse_other_route, refuse_route_of_base
from worker.serving.adapters import check_fits, inspect_adapter
from worker.serving.digests import Digests
from worker.serving.prediction_loop import PredictionLoop
from worker.serving.prediction_request import TaskModel
from worker.serving.settings import EngineSettings
from worker.task_file import TaskFile
from worker.trunk.device import DeviceProfile

logger = logging.getLogger(__name__)

# By its path: the event loop must not wait for `peft` and scikit-learn to be imported.
_LOAD = "worker.serving.task_loading:load_task_model"

# How a base model answers that no one has tuned.
_BASE_TASK = TaskFile(FEATURE_EXTRACTION, {})


@dataclass(frozen=True, slots=True, eq=False)
class ServedTaskModel:
    """What the name of such a model stands for. It never changes.

    Attributes:
        directory: where what was tuned was read from, or the base model.
        is_base: it is the base model itself.
    """

    name: str
    task: str
    base: InstalledBaseModel
    directory: Path
    model: TaskModel
    is_base: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


class TaskModels:
    """Such models by name, and the loop that predicts with them. Used on the event loop alone.

    Args:
        find_base: see `Engine`.
        profile: what they compute on.
        digests: of the files that were seen before.
    """

    def __init__(
        self,
        settings: EngineSettings,
        find_base: Callable[[str], InstalledBaseModel],
        profile: DeviceProfile,
        digests: Digests,
    ) -> None:
        self._digests = digests
        self._max_tuned = settings.max_task_models
        self._find_base = find_base
        self._profile = profile
        self._tuned: OrderedDict[str, ServedTaskModel] = OrderedDict()  # Last used, last in order.
        self._bases: dict[str, ServedTaskModel] = {}  # By id and by every other name asked for.
        # One at a time: a model shares the weights of those that were loaded before it.
        self._loading = asyncio.Lock()
        self.loop = PredictionLoop(
            settings.prediction_tokens_per_pass,
            settings.max_queued_predictions,
            settings.max_queued_predictions_per_project,
        )

    def find(self, name: str) -> ServedTaskModel | None:
        """Return a tuned model that is loaded, as one that is used now."""
        if name in self._tuned:
            self._tuned.move_to_end(name)
        return self._tuned.get(name)

    async def resolve(self, name: str, route: str) -> ServedTaskModel:
        """Return what a model name stands for, loading a base model on first use.

        Raises:
            NotFound: there is no such base model, and no such tuned model is loaded.
            InvalidInput: another route answers with this model.
        """
        found = self.find(name)
        if found is not None:
            refuse_other_route(name, found.task, route)
            return found
        return await self.load_base(name, route)

    async def load_base(self, name: str, route: str) -> ServedTaskModel:
        """Load a base model that can answer as it is. Raises: NotFound, InvalidInput."""
        if name not in self._bases:
            base = await asyncio.to_thread(self._find_base, name)
            refuse_route_of_base(name, base.tasks, route)
            async with self._loading:
                if base.id not in self._bases:
                    model = await self._load(base, _BASE_TASK, None)
                    self._bases[base.id] = ServedTaskModel(
                        base.id, _BASE_TASK.task, base, base.directory, model, is_base=True
                    )
                    logger.info("loaded base model %s for %s", base.id, _BASE_TASK.task)
                self._bases[name] = self._bases[base.id]
        return self._bases[name]

    async def load_tuned(self, name: str, directory: Path) -> None:
        """Put a tuned model into service; doing so twice is not an error.

        Raises:
            InvalidInput: the name stands for something else, or the model is damaged or was
                trained for something else; the message says which.
            Unavailable: every place is taken by a model in use.
        """
        async with self._loading:
            existing = self._tuned.get(name) or self._bases.get(name)
            if existing is None:
                self._tuned[name] = await self._served(name, directory)
                logger.info("loaded %s from %s", name, directory)
            elif existing.directory != directory:
                raise InvalidInput(f"the name {name!r} is taken", param="lora_name")

    def unload(self, name: str) -> bool:
        """Take a tuned model out of service, and say whether it was; its running work goes on."""
        return self._tuned.pop(name, None) is not None

    def models(self) -> list[ServedTaskModel]:
        """Return the base models and tuned ones that are loaded."""
        bases = {model.name: model for model in self._bases.values()}
        return [*bases.values(), *self._tuned.values()]

    def stats(self) -> Mapping[str, Any]:
        return {"models": [model.name for model in self.models()], **asdict(self.loop.stats())}

    def close(self) -> None:
        self.loop.close()

    async def _served(self, name: str, directory: Path) -> ServedTaskModel:
        files = await asyncio.to_thread(inspect_adapter, directory, self._digests.sha256)
        try:
            base = await asyncio.to_thread(self._find_base, files.base_name)
        except NotFound:
            raise InvalidInput(
                f"the model was trained on {files.base_name!r}, which is not served here",
                param="lora_path",
            ) from None
        await asyncio.to_thread(check_fits, files, base, self._digests.sha256)
        if files.task_file is None:
            raise InvalidInput("the model does not say what it is for", param="lora_path")
        model = await self._load(base, files.task_file, directory)
        self._make_room()
        return ServedTaskModel(name, files.task_file.task, base, directory, model)

    async def _load(
        self, base: InstalledBaseModel, task_file: TaskFile, tuned: Path | None
    ) -> TaskModel:
        relatives = [
            one.model
            for one in self.models()
            if (one.base.id, one.base.revision) == (base.id, base.revision)
        ]

        def load() -> TaskModel:
            model: TaskModel = resolve(_LOAD)(base, task_file, tuned, self._profile, relatives)
            return model

        return await asyncio.to_thread(load)

    def _make_room(self) -> None:
        while len(self._tuned) >= self._max_tuned:
            idle = (name for name, one in self._tuned.items() if self.loop.is_idle(one.model))
            name = next(idle, None)
            if name is None:
                raise Unavailable("every tuned model in memory is in use; try again")
            logger.info("dropped %s to make room", name)
            self.unload(name)
