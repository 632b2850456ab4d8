"""The engine with kinds of adapter beside LoRA, on the real base model, against plain `peft`."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.base_models import InstalledBaseModel
from app.domain.errors import NotFound, Unavailable
from app.domain.job_spec import AdapterSpec
from tests.training.conftest import CPU
from worker.generation.request import GenerationRequest
from worker.serving.app import create_app
from worker.serving.base import ServedBase
from worker.serving.engine import Engine
from worker.serving.settings import EngineSettings
from worker.serving.trunk_loading import trunk_loader
from worker.tuning import named_weights
from worker.tuning.peft_config import Surroundings
from worker.tuning.peft_tuning import PeftTuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"
NEW_TOKENS = 6
ADAPTERS = {
    "prefix": AdapterSpec("prefix-tuning", {"num_virtual_tokens": 5}),
    "alone": AdapterSpec("ia3"),
}

Scenario = Callable[[httpx.AsyncClient, Engine], Awaitable[None]]


@pytest.fixture(scope="module")
def adapter_root(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters with random weights that change every answer."""
    root = tmp_path_factory.mktemp("adapters")
    for name, adapter in ADAPTERS.items():
        torch.manual_seed(5)
        model = plain_base(base_model_dir)
        tuning = PeftTuning(adapter, Surroundings(model, (), "CAUSAL_LM", 10))
        with torch.no_grad():
            for _, weight in named_weights(tuning.groups()):
                weight.add_(torch.randn_like(weight) * 0.3)
        (root / name).mkdir()
        tuning.save(root / name, NAME)
    return root


@pytest.fixture(scope="module")
def expected(base_model_dir: Path, adapter_root: Path) -> dict[str, str]:
    """The answers of plain `peft`, each adapter by itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base_model_dir)
    prompt_ids = tokenizer(PROMPT).input_ids
    answers: dict[str, str] = {}
    for name in ADAPTERS:
        model: Any = PeftModel.from_pretrained(
            plain_base(base_model_dir), str(adapter_root / name)
        ).eval()
        ids = list(prompt_ids)
        while len(ids) < len(prompt_ids) + NEW_TOKENS:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        answers[name] = tokenizer.decode(ids[len(prompt_ids) :])
    return answers


def plain_base(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def run(scenario: Scenario, base_model_dir: Path, adapter_root: Path, **settings: Any) -> None:
    base = InstalledBaseModel("smollm2", NAME, base_model_dir, "revision-1", 2048)

    def find_base(name: str) -> InstalledBaseModel:
        if name not in (base.id, base.name):
            raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
        return base

    async def drive() -> None:
        app = create_app(
            EngineSettings(adapter_root=adapter_root, **settings),
            find_base,
            trunk_loader("native", CPU),
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
        ):
            await scenario(client, app.state.engine)

    asyncio.run(drive())


async def ask(client: httpx.AsyncClient, model: str, tokens: int = NEW_TOKENS) -> str:
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": tokens}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_answers_equal_those_of_plain_peft(
    base_model_dir: Path, adapter_root: Path, expected: dict[str, str]
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        for name in ADAPTERS:
            await engine.load_adapter(name, name)
        # At the same time: one of them shares a batch with the base model, the other does not.
        untuned, *found = await asyncio.gather(
            ask(client, "smollm2"), *(ask(client, name) for name in ADAPTERS)
        )
        assert dict(zip(ADAPTERS, found, strict=True)) == expected
        assert len({untuned, *found}) == 1 + len(ADAPTERS)
        loops = engine.stats()["bases"]
        assert set(loops) == {"smollm2", "alone"}
        assert loops["smollm2"]["attached"] == 1

    run(scenario, base_model_dir, adapter_root)


def test_few_models_have_weights_of_their_own(
    base_model_dir: Path, adapter_root: Path, expected: dict[str, str]
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await engine.load_adapter("alone", "alone")
        loop = (await engine.resolve("alone")).base.loop
        answer = asyncio.create_task(ask(client, "alone", tokens=NEW_TOKENS + 20))
        while loop.is_idle(None):
            await asyncio.sleep(0.01)
        engine.unload_adapter("alone")
        # What runs goes on, and the weights go after it.
        assert (await answer).startswith(expected["alone"])
        while loop.is_alive:
            await asyncio.sleep(0.01)

        await engine.load_adapter("alone", "alone")
        await engine.load_adapter("other", "alone")
        assert set(engine.stats()["bases"]) == {"smollm2", "other"}
        assert await ask(client, "other") == expected["alone"]
        # What had to make room comes back by itself.
        assert await ask(client, "alone") == expected["alone"]
        assert set(engine.stats()["bases"]) == {"smollm2", "alone"}

    run(scenario, base_model_dir, adapter_root, max_own_models=1)


def test_a_model_that_a_request_is_about_to_ask_makes_no_room(
    base_model_dir: Path, adapter_root: Path
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await engine.load_adapter("alone", "alone")
        with engine.visit() as visit:
            model = await visit.resolve("alone")
            with pytest.raises(Unavailable):
                await engine.load_adapter("other", "alone")
            assert await model.base.encode_text(PROMPT)
        await engine.load_adapter("other", "alone")

    run(scenario, base_model_dir, adapter_root, max_own_models=1)


def test_what_was_unloaded_tells_so_and_leaves_no_weights_behind(
    base_model_dir: Path, adapter_root: Path
) -> None:
    async def ask_while_it_leaves(engine: Engine) -> weakref.ref[ServedBase]:
        with engine.visit() as visit:
            base = (await visit.resolve("alone")).base
            engine.unload_adapter("alone")
            prompt_ids = tuple(await base.encode_text(PROMPT))
            with pytest.raises(NotFound):
                base.loop.submit([GenerationRequest(prompt_ids, 1)])
            return weakref.ref(base)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await engine.load_adapter("alone", "alone")
        left = await ask_while_it_leaves(engine)
        async with asyncio.timeout(20):
            while left() is not None:
                await asyncio.sleep(0.05)
                gc.collect()

    run(scenario, base_model_dir, adapter_root)
