"""The engine: which base models and adapters are in service, and under which names."""

import asyncio
import hashlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput, NotFound, Unavailable
from app.domain.registry import resolve
from app.domain.task_routes import CHAT, EMBEDDINGS, refuse_other_route, refuse_route_of_base
from app.domain.tasks import TEXT_GENERATION
from worker.serving.adapters import (
    AdapterFiles,
    check_fits,
    inspect_adapter,
    locate_adapter,
    task_of,
)
from worker.serving.base import ServedBase
from worker.serving.loop import LoopLimits
from worker.serving.served_adapters import read_mixed
from worker.serving.settings import EngineSettings
from worker.serving.task_models import ServedTaskModel, TaskModels
from worker.trunk.device import DeviceProfile
from worker.trunk.lora import LoraAdapter
from worker.trunk.lora_mean import weighted_mean
from worker.trunk.trunk import Trunk

_MERGE = "worker.tuning.merging:merge_into"

logger = logging.getLogger(__name__)

FindBase = Callable[[str], InstalledBaseModel]
LoadTrunk = Callable[[Path], Trunk]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a model name stands for. It never changes: another version has another name.

    Attributes:
        directory: where its weights were read from.
        fingerprint: differs wherever answers could.
        slot: the adapter's name in the loop of `base`; None is the base model itself, or
            tuned weights that no one else uses.
        is_alone: `base` has been tuned and serves this model only.
        chat_template: the adapter's own; None is the base model's.
    """

    name: str
    base: ServedBase
    directory: Path
    fingerprint: str
    slot: str | None = None
    chat_template: str | None = None
    is_alone: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


class Engine:
    """Base models and adapters by name. Used on the event loop alone.

    Args:
        settings: limits, and where adapters may lie.
        find_base: returns the files of a base model by its id or name, fetching them if need
            be; raises NotFound. Runs on a thread.
        load_trunk: reads them into memory. Runs on a thread.
        profile: what models of other tasks than text generation compute on.
    """

    def __init__(
        self,
        settings: EngineSettings,
        find_base: FindBase,
        load_trunk: LoadTrunk,
        profile: DeviceProfile,
    ) -> None:
        self._settings = settings
        self._find_base = find_base
        self._load_trunk = load_trunk
        self._bases: dict[str, ServedModel] = {}  # By id and by every other name asked for.
        self._adapters: OrderedDict[str, ServedModel] = OrderedDict()  # Last used, last in order.
        self._base_loading = asyncio.Lock()
        self._adapter_loading = asyncio.Lock()
        self._retired: list[ServedBase] = []
        self._slot_numbers = itertools.count(1)
        self.tasks = TaskModels(settings, find_base, profile)

    @property
    def is_healthy(self) -> bool:
        """Whether every loop is running."""
        return self.tasks.loop.is_alive and all(
            base.loop.is_alive for base in self._loops().values()
        )

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of text generation that a name stands for, loading base models.

        Raises:
            NotFound: there is no such base model, and no such adapter is loaded.
            InvalidInput: the model is for another task, or its files cannot be used.
        """
        if name in self._adapters:
            self._adapters.move_to_end(name)
            return self._adapters[name]
        if (other := self.tasks.find(name)) is not None:
            refuse_other_route(name, other.task, CHAT)
        return await self.load_base(name)

    async def resolve_task(self, name: str, route: str) -> ServedTaskModel:
        """Return the model of another task that a name stands for, loading base models.

        Raises:
            NotFound: there is no such base model, and no such tuned model is loaded.
            InvalidInput: another route answers with this model; the message says which.
        """
        if name in self._adapters:
            refuse_other_route(name, TEXT_GENERATION, route)
        return await self.tasks.resolve(name, route)

    async def preload(self, name: str) -> None:
        """Load a base model for what it can do by itself. Raises: NotFound, InvalidInput."""
        base = await asyncio.to_thread(self._find_base, name)
        if TEXT_GENERATION in base.tasks:
            await self.load_base(name)
        else:
            await self.tasks.load_base(name, EMBEDDINGS)

    async def load_base(self, name: str) -> ServedModel:
        """Load a base model unless it is loaded. Raises: NotFound, InvalidInput."""
        if name not in self._bases:
            files = await asyncio.to_thread(self._find_base, name)
            refuse_route_of_base(name, files.tasks, CHAT)
            async with self._base_loading:
                if files.id not in self._bases:
                    self._bases[files.id] = await self._served_base(files)
                self._bases[name] = self._bases[files.id]
        return self._bases[name]

    async def load_adapter(
        self, name: str, path: str, members: Sequence[tuple[str, float]] = ()
    ) -> None:
        """Put an adapter into service; doing so twice is not an error.

        Args:
            members: paths and weights of the LoRA adapters whose mean it is, if it is one; `path`
                is then that of the first.

        Raises:
            InvalidInput: the path is not allowed, the name stands for something else, or the
                adapter is damaged or was trained for something else; the message says which.
            Unavailable: every place is taken by an adapter in use.
        """
        root = self._settings.adapter_root
        directory = await asyncio.to_thread(locate_adapter, root, path)
        parts = [
            (await asyncio.to_thread(locate_adapter, root, one), weight) for one, weight in members
        ]
        if await asyncio.to_thread(task_of, directory) != TEXT_GENERATION:
            if parts:
                raise InvalidInput(
                    f"a mean is taken of adapters for {TEXT_GENERATION}", param="lora_members"
                )
            if name in self._adapters or name in self._bases:
                raise InvalidInput(f"the name {name!r} is taken", param="lora_name")
            await self.tasks.load_tuned(name, directory)
            return
        async with self._adapter_loading:
            existing = self._adapters.get(name) or self._bases.get(name) or self.tasks.find(name)
            if existing is None:
                self._adapters[name] = await (
                    self._served_mean(name, parts)
                    if parts
                    else self._served_adapter(name, directory)
                )
                logger.info("loaded adapter %s from %s", name, directory)
            elif existing.directory != directory:
                raise InvalidInput(f"the name {name!r} is taken", param="lora_name")

    def unload_adapter(self, name: str) -> None:
        """Take an adapter out of service; its running answers go on. Raises: NotFound."""
        if self.tasks.unload(name):
            return
        if name not in self._adapters:
            raise NotFound(f"no adapter {name!r} is loaded", param="lora_name")
        self._drop(name)

    def models(self) -> list[ServedModel]:
        """Return the base models and adapters that are loaded."""
        bases = {model.name: model for model in self._bases.values()}
        return [*bases.values(), *self._adapters.values()]

    def stats(self) -> dict[str, Any]:
        """Return what the loops are doing, together and for each base model."""
        loops = {name: asdict(base.loop.stats()) for name, base in self._loops().items()}
        totals = {
            key: sum(stats[key] for stats in loops.values())
            for key in ("running", "waiting", "steps", "generated_tokens", "cancelled")
        }
        predictions = self.tasks.stats()
        return {**totals, "adapters": list(self._adapters), "bases": loops, "tasks": predictions}

    def close(self) -> None:
        """End every loop after its step in progress."""
        self.tasks.close()
        for base in (*self._loops().values(), *self._retired):
            base.close()

    def _loops(self) -> dict[str, ServedBase]:
        """Return whatever has a loop, by the name of the model that it is first of all."""
        alone = (model for model in self._adapters.values() if model.is_alone)
        return {model.name: model.base for model in (*self._bases.values(), *alone)}

    async def _served_base(self, files: InstalledBaseModel) -> ServedModel:
        started = time.monotonic()
        trunk = await asyncio.to_thread(self._load_trunk, files.directory)
        base = ServedBase(files, trunk, self._limits(), asyncio.get_running_loop())
        logger.info("loaded base model %s in %.1f s", files.id, time.monotonic() - started)
        return ServedModel(files.id, base, files.directory, _fingerprint(files.revision))

    async def _served_adapter(self, name: str, directory: Path) -> ServedModel:
        files, base = await self._inspected(directory)
        adapter = await asyncio.to_thread(read_mixed, directory, base.input_width)
        fingerprint = _fingerprint(base.files.revision, files.digest)
        self._make_room(self._settings.max_adapters, list(self._adapters))
        if adapter is None:
            alone = [name for name, model in self._adapters.items() if model.is_alone]
            self._make_room(self._settings.max_own_models, alone)
            own = await self._own_weights(base.files, directory)
            return ServedModel(
                name, own, directory, fingerprint, None, files.chat_template, is_alone=True
            )
        slot = f"{name}#{next(self._slot_numbers)}"
        await asyncio.wrap_future(base.loop.attach(slot, adapter))
        return ServedModel(name, base, directory, fingerprint, slot, files.chat_template)

    async def _served_mean(self, name: str, members: Sequence[tuple[Path, float]]) -> ServedModel:
        adapters, digests = list[LoraAdapter](), list[str]()
        files, base = await self._inspected(members[0][0])
        for directory, weight in members:
            its_files, its_base = await self._inspected(directory)
            adapter = await asyncio.to_thread(read_mixed, directory, base.input_width)
            is_alike = its_base is base and its_files.chat_template == files.chat_template
            if not is_alike or not isinstance(adapter, LoraAdapter):
                raise InvalidInput(
                    "a mean is taken of LoRA adapters of one base model and chat template",
                    param="lora_members",
                )
            adapters.append(adapter)
            digests.append(f"{its_files.digest} {weight}")
        mean = await asyncio.to_thread(weighted_mean, adapters, [one for _, one in members])
        self._make_room(self._settings.max_adapters, list(self._adapters))
        slot = f"{name}#{next(self._slot_numbers)}"
        await asyncio.wrap_future(base.loop.attach(slot, mean))
        fingerprint = _fingerprint(base.files.revision, *digests)
        return ServedModel(name, base, members[0][0], fingerprint, slot, files.chat_template)

    async def _inspected(self, directory: Path) -> tuple[AdapterFiles, ServedBase]:
        """Return an adapter's files, checked, and the base model that they fit."""
        files = await asyncio.to_thread(inspect_adapter, directory)
        try:
            base = (await self.load_base(files.base_name)).base
        except NotFound:
            raise InvalidInput(
                f"the adapter was trained on {files.base_name!r}, which is not served here",
                param="lora_path",
            ) from None
        await asyncio.to_thread(check_fits, files, base.files)
        return files, base

    async def _own_weights(self, files: InstalledBaseModel, directory: Path) -> ServedBase:
        """Return a base model with the adapter merged into its weights, on a loop of its own."""
        started = time.monotonic()

        def load() -> Trunk:
            # By name, since `peft` takes seconds to import, which most engines never need.
            tuned: Trunk = resolve(_MERGE)(self._load_trunk(files.directory), directory)
            return tuned

        trunk = await asyncio.to_thread(load)
        logger.info("merged %s in %.1f s", directory, time.monotonic() - started)
        return ServedBase(files, trunk, self._limits(), asyncio.get_running_loop())

    def _limits(self) -> LoopLimits:
        return LoopLimits(
            max_running=self._settings.max_running,
            max_queued=self._settings.max_queued,
            prefill_tokens_per_step=self._settings.prefill_tokens_per_step,
        )

    def _make_room(self, limit: int, names: list[str]) -> None:
        """Drop idle adapters, the least recently used first, until there are fewer than `limit`."""
        while len(names) >= limit:
            models = ((name, self._adapters[name]) for name in names)
            idle = (name for name, model in models if model.base.loop.is_idle(model.slot))
            name = next(idle, None)
            if name is None:
                raise Unavailable("every adapter in memory is in use; try again")
            logger.info("dropped adapter %s to make room", name)
            self._drop(name)
            names.remove(name)

    def _drop(self, name: str) -> None:
        model = self._adapters.pop(name)
        if model.slot is not None:
            model.base.loop.detach(model.slot)
            return
        model.base.retire()
        # Kept until its last answer is complete, so that the engine's end ends it, too.
        self._retired = [base for base in self._retired if base.loop.is_alive] + [model.base]


def _fingerprint(*parts: str) -> str:
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
