"""A loaded base model, adapters with random weights, and a loop to run requests through."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.base_models import InstalledBaseModel
from app.domain.errors import NotFound
from app.domain.job_spec import AdapterSpec, DatasetRef, Hyperparameters, JobSpec, LoraSpec
from tests.training.conftest import bases, tiny_base, tiny_trunk
from worker.generation.request import GenerationRequest, Piece
from worker.generation.vocabulary import Vocabulary, end_token_ids
from worker.serving.answers import collect
from worker.serving.app import create_app
from worker.serving.engine import Engine
from worker.serving.loop import GenerationLoop, LoopLimits
from worker.serving.settings import EngineSettings
from worker.training.manifest import BaseModelRef, Origin, chat_template
from worker.trunk.device import DeviceProfile
from worker.trunk.listing import write_listing
from worker.trunk.loading import load_trunk
from worker.trunk.lora import LoraAdapter, LoraPair, new_adapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

__all__ = ["bases", "tiny_base", "tiny_trunk"]

BASE_ID = "smollm2-135m"
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CPU = DeviceProfile("cpu", "float32", 1)

ADAPTER_SPECS: Mapping[str, LoraSpec] = {
    "red": LoraSpec(r=4, alpha=8),
    "green": LoraSpec(r=16, alpha=16, target_modules=("q_proj", "v_proj")),
    "blue": LoraSpec(r=8, alpha=4, target_modules=("gate_proj", "down_proj", "o_proj")),
}

Generate = Callable[..., list[Piece]]
Scenario = Callable[[httpx.AsyncClient, Engine], Awaitable[None]]
RunScenario = Callable[..., None]


@pytest.fixture(scope="session")
def installed_base(base_model_dir: Path) -> InstalledBaseModel:
    return InstalledBaseModel(BASE_ID, BASE_NAME, base_model_dir, "revision-1", 2048)


@pytest.fixture(scope="session")
def trunk(base_model_dir: Path) -> Trunk:
    torch.set_num_threads(1)
    return load_trunk(base_model_dir, CPU)


@pytest.fixture(scope="session")
def vocabulary(trunk: Trunk) -> Vocabulary:
    return Vocabulary(trunk.tokenizer, end_token_ids(trunk))


@pytest.fixture(scope="session")
def reference_model(base_model_dir: Path) -> PreTrainedModel:
    """The same base model as transformers itself runs it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_model_dir, dtype=torch.float32, local_files_only=True
    )
    model.train(False)
    return model


@pytest.fixture(scope="session")
def random_adapters(trunk: Trunk) -> dict[str, LoraAdapter]:
    """Adapters of different ranks and target modules that change every answer."""
    return {
        name: with_random_update(new_adapter(trunk.model, spec, seed), seed)
        for seed, (name, spec) in enumerate(ADAPTER_SPECS.items())
    }


@pytest.fixture
def generate(trunk: Trunk, vocabulary: Vocabulary) -> Generate:
    """Run requests through a loop of their own and return one whole piece for each."""

    def run(
        requests: Sequence[GenerationRequest],
        adapters: Mapping[str, LoraAdapter] | None = None,
        limits: LoopLimits = LoopLimits(),  # noqa: B008
    ) -> list[Piece]:
        async def answer() -> list[Piece]:
            loop = GenerationLoop(trunk, vocabulary, limits, asyncio.get_running_loop())
            try:
                for slot, adapter in (adapters or {}).items():
                    await asyncio.wrap_future(loop.attach(slot, adapter))
                return await collect(loop.submit(requests))
            finally:
                loop.close()
                for slot in adapters or {}:
                    trunk.detach(slot)

        return asyncio.run(answer())

    return run


@pytest.fixture(scope="session")
def write_trained(
    trunk: Trunk, installed_base: InstalledBaseModel
) -> Callable[[Path, LoraAdapter], None]:
    """Write an adapter's directory and its checkpoint's listing by the trainer's own code."""
    base = BaseModelRef(
        id=installed_base.id,
        directory=str(installed_base.directory),
        revision=installed_base.revision,
        name_or_path=installed_base.name,
    )

    def write(directory: Path, adapter: LoraAdapter) -> None:
        directory.mkdir(parents=True)
        save_adapter(directory, adapter, installed_base.name)
        spec = _job_spec(installed_base.id, adapter.spec)
        Origin(spec, base, trunk.directory, CPU, chat_template(trunk)).write(directory, 3)
        write_listing(directory.parent)

    return write


@pytest.fixture
def adapter_root(
    tmp_path: Path,
    installed_base: InstalledBaseModel,
    random_adapters: dict[str, LoraAdapter],
    write_trained: Callable[[Path, LoraAdapter], None],
) -> Path:
    """One adapter of the trainer's, one of peft's, and one that breaks whoever uses it."""
    root = tmp_path / "adapters"
    write_trained(root / "red" / "adapter", random_adapters["red"])
    broken = replace(
        random_adapters["red"],
        # Finite in itself, but queries times keys overflow.
        weights={
            path: LoraPair(pair.a, pair.b * 1e30)
            for path, pair in random_adapters["red"].weights.items()
        },
    )
    for name, adapter in (("blue", random_adapters["blue"]), ("broken", broken)):
        (root / name).mkdir()
        save_adapter(root / name, adapter, installed_base.name)
    return root


@pytest.fixture
def with_engine(
    trunk: Trunk, installed_base: InstalledBaseModel, adapter_root: Path
) -> Iterator[RunScenario]:
    """Run a scenario with a client of an engine that has the given settings."""

    def find_base(name: str) -> InstalledBaseModel:
        if name not in (installed_base.id, installed_base.name):
            raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
        return installed_base

    def run(scenario: Scenario, **settings: Any) -> None:
        async def drive() -> None:
            app = create_app(
                EngineSettings(adapter_root=adapter_root, **settings), find_base, lambda _: trunk
            )
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
            ):
                await scenario(client, app.state.engine)

        asyncio.run(drive())

    yield run
    for name in trunk.adapters:
        trunk.detach(name)


def _job_spec(base_model: str, adapter: LoraSpec) -> JobSpec:
    return JobSpec(
        job_id="ftjob-test",
        base_model=base_model,
        method="supervised",
        training_file=DatasetRef("file-test", "files/file-test", "0" * 64, 1),
        validation_file=None,
        start_from=None,
        seed=1,
        hyperparameters=Hyperparameters(1, 1, 1e-4, 128),
        adapter=AdapterSpec.of_lora(adapter),
    )


def with_random_update(adapter: LoraAdapter, seed: int) -> LoraAdapter:
    generator = torch.Generator().manual_seed(100 + seed)
    weights = {
        path: LoraPair(pair.a, torch.randn(pair.b.shape, generator=generator) * 0.05)
        for path, pair in adapter.weights.items()
    }
    return replace(adapter, weights=weights)
