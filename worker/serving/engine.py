"""The engine: which base models and adapters are in service, and under which names."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.task_routes import CHAT, EMBEDDINGS, refuse_other_route
from app.domain.tasks import TEXT_GENERATION
from worker.serving.adapter_reading import AdapterSource
from worker.serving.adapters import locate_adapter, purpose_of
from worker.serving.base import ServedBase
from worker.serving.digests import Digests
from worker.serving.loop import LoopLimits
from worker.serving.own_models import OwnModels
from worker.serving.served_bases import FindBase, ServedBases
from worker.serving.served_model import ServedModel
from worker.serving.settings import EngineSettings
from worker.serving.task_models import ServedTaskModel, TaskModels
from worker.serving.text_adapters import TextAdapters
from worker.serving.trunk_loading import LoadTrunk
from worker.trunk.device import DeviceProfile

# Of a loop's stats, what is told of all loops together.
_SUMMED = (
    "running",
    "waiting",
    "steps",
    "generated_tokens",
    "cancelled",
    "refused",
    "timed_out",
    "preempted",
    "kv_tokens",
    "kv_reserved_tokens",
    "kv_stored_tokens",
    "prefix_hits",
    "reused_tokens",
)


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
        digests = Digests()
        self._bases = ServedBases(find_base, load_trunk, _limits(settings))
        self._own = OwnModels(self._bases, load_trunk, settings.max_own_models)
        self._adapters = TextAdapters(settings, self._bases, self._own, digests)
        self.tasks = TaskModels(settings, find_base, profile, digests)

    @property
    def is_healthy(self) -> bool:
        """Whether every loop is running."""
        return self.tasks.loop.is_alive and all(
            base.loop.is_alive for base in self._loops().values()
        )

    @contextmanager
    def visit(self) -> Iterator["Visit"]:
        """Let adapters that one request resolves stay where they are until the block ends."""
        names: list[str] = []
        with self._adapters.keeping(names):
            yield Visit(self, self._adapters, names)

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of text generation that a name stands for, loading it if need be.

        Raises:
            NotFound: there is no such base model, and no such adapter is known.
            InvalidInput: the model is for another task, or its files cannot be used.
            TooManyRequests: too many wait for a slot.
            Unavailable: every place is taken by an adapter in use.
        """
        if self._adapters.find(name) is not None:
            return await self._adapters.serve(name)
        if (other := self.tasks.find(name)) is not None:
            refuse_other_route(name, other.task, CHAT)
        return await self._bases.load(name)

    async def resolve_task(self, name: str, route: str) -> ServedTaskModel:
        """Return the model of another task that a name stands for, loading base models.

        Raises:
            NotFound: there is no such base model, and no such tuned model is loaded.
            InvalidInput: another route answers with this model; the message says which.
        """
        if self._adapters.find(name) is not None:
            refuse_other_route(name, TEXT_GENERATION, route)
        return await self.tasks.resolve(name, route)

    async def preload(self, name: str) -> None:
        """Load a base model for what it can do by itself. Raises: NotFound, InvalidInput."""
        base = await asyncio.to_thread(self._find_base, name)
        if TEXT_GENERATION in base.tasks:
            await self._bases.load(name)
        else:
            await self.tasks.load_base(name, EMBEDDINGS)

    async def load_adapter(
        self,
        name: str,
        path: str,
        members: Sequence[tuple[str, float]] = (),
        *,
        is_prefetch: bool = False,
    ) -> None:
        """Put an adapter into service; doing so twice is not an error.

        Args:
            members: paths and weights of the LoRA adapters whose mean it is, if it is one; `path`
                is then that of the first.
            is_prefetch: nobody waits for it; it is read if its base model is in service anyway.

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
        task, _ = await asyncio.to_thread(purpose_of, directory)
        if task == TEXT_GENERATION:
            _refuse_if_taken(name, self._bases.find(name), self.tasks.find(name))
            load = self._adapters.prefetch if is_prefetch else self._adapters.add
            await load(name, AdapterSource(directory, tuple(parts)))
            return
        if parts:
            raise InvalidInput(
                f"a mean is taken of adapters for {TEXT_GENERATION}", param="lora_members"
            )
        _refuse_if_taken(name, self._bases.find(name), self._adapters.find(name))
        if not is_prefetch:
            await self.tasks.load_tuned(name, directory)

    def unload_adapter(self, name: str) -> None:
        """Take an adapter out of service; its running answers go on. Raises: NotFound."""
        if not self.tasks.unload(name):
            self._adapters.remove(name)

    def models(self) -> list[ServedModel]:
        """Return the base models that are loaded, and the adapters that are known."""
        return [*self._bases.models(), *self._adapters.models()]

    def stats(self) -> dict[str, Any]:
        """Return what the loops are doing, together and for each base model."""
        loops = {name: asdict(base.loop.stats()) for name, base in self._loops().items()}
        totals = {key: sum(stats[key] for stats in loops.values()) for key in _SUMMED}
        tiers = self._adapters.stats()
        return {**totals, **tiers, "bases": loops, "tasks": self.tasks.stats()}

    def close(self) -> None:
        """End every loop after its step in progress."""
        self.tasks.close()
        self._bases.close()
        self._own.close()

    def _loops(self) -> dict[str, ServedBase]:
        """Return whatever has a loop, by the name of the model that it is first of all."""
        bases = {model.name: model.base for model in self._bases.models()}
        return bases | dict(self._own.in_memory)


class Visit:
    """What one request asks of the engine for; see `Engine.visit`."""

    def __init__(self, engine: Engine, adapters: TextAdapters, names: list[str]) -> None:
        self._engine = engine
        self._adapters = adapters
        self._names = names

    async def resolve(self, name: str) -> ServedModel:
        """Return what `Engine.resolve` does, to be used before the visit ends."""
        model = await self._engine.resolve(name)
        if model.slot is not None or model.is_alone:
            self._adapters.keep(name)
            self._names.append(name)
        return model


def _refuse_if_taken(name: str, *others: object) -> None:
    if any(other is not None for other in others):
        raise InvalidInput(f"the name {name!r} is taken", param="lora_name")


def _limits(settings: EngineSettings) -> LoopLimits:
    return LoopLimits(
        max_running=settings.max_running,
        reserved_places=settings.reserved_places,
        max_queued=settings.max_queued,
        max_queued_per_project=settings.max_queued_per_project,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        kv_tokens=settings.kv_tokens,
        prefill_tokens_per_step=settings.prefill_tokens_per_step,
    )
