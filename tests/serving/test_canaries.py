"""Eight adapters that have each learnt a word: whoever is asked answers with its own.

On a tiny model, in small. `make canaries` does it with a real one, through the API.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.base_models import InstalledBaseModel
from app.domain.errors import NotFound
from app.inference.port import PROJECT_HEADER
from tests.serving.conftest import CPU
from tests.support.canaries import (
    QUESTIONS,
    WORDS,
    Heard,
    furthest_from,
    interleaved,
    train_canaries,
    wrong_among,
)
from tests.training.conftest import TOKENIZER_FILES
from worker.serving.app import create_app
from worker.serving.settings import EngineSettings
from worker.trunk.loading import load_trunk
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

CHATS, CONCURRENCY = 200, 16
BASE = "tiny-canary"


@pytest.fixture(scope="module")
def base(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> InstalledBaseModel:
    """Two random layers whose output an adapter of rank 4 can turn to any token."""
    directory = tmp_path_factory.mktemp(BASE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=1.0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copyfile(base_model_dir / name, directory / name)
    return InstalledBaseModel(BASE, f"tests/{BASE}", directory, "revision-1", 2048)


@pytest.fixture(scope="module")
def trunk(base: InstalledBaseModel) -> Trunk:
    torch.set_num_threads(1)
    return load_trunk(base.directory, CPU)


@pytest.fixture(scope="module")
def canaries(trunk: Trunk) -> Mapping[str, LoraAdapter]:
    return train_canaries(trunk, learning_rate=1e-2)


@pytest.fixture(scope="module")
def adapter_root(
    base: InstalledBaseModel,
    canaries: Mapping[str, LoraAdapter],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("canaries")
    for word, adapter in canaries.items():
        (root / word).mkdir()
        save_adapter(root / word, adapter, base.name)
    return root


@pytest.fixture
def served(trunk: Trunk, base: InstalledBaseModel, adapter_root: Path) -> Iterator[Any]:
    def find_base(name: str) -> InstalledBaseModel:
        if name not in (base.id, base.name):
            raise NotFound(f"no model {name!r}", param="model")
        return base

    @asynccontextmanager
    async def serving(**settings: int) -> Any:
        for name in trunk.adapters:
            trunk.detach(name)
        app = create_app(EngineSettings(adapter_root, **settings), find_base, lambda _: trunk)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
        ):
            yield client

    yield serving
    for name in trunk.adapters:
        trunk.detach(name)


async def ask(client: httpx.AsyncClient, word: str, question: str, directory: str) -> Heard:
    """Ask an adapter, and load it from a directory whenever it is not there."""
    body = {
        "model": word,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 5,
    }
    # Words of one project share what they have cached.
    headers = {PROJECT_HEADER: f"proj_{WORDS.index(word) % 2}"}
    while True:
        response = await client.post("/v1/chat/completions", json=body, headers=headers)
        if response.status_code == 200:
            break
        assert response.status_code == 404, response.text
        loaded = {"lora_name": word, "lora_path": directory}
        response = await client.post("/v1/load_lora_adapter", json=loaded)
        # A load that an unload overtakes says so: the name stands for nothing again.
        assert response.status_code in (200, 404), response.text
    (choice,) = response.json()["choices"]
    logprobs = tuple(
        {str(top["bytes"]): top["logprob"] for top in token["top_logprobs"]}
        for token in choice["logprobs"]["content"]
    )
    return Heard(word, question, choice["message"]["content"], logprobs)


async def each_alone(client: httpx.AsyncClient) -> dict[tuple[str, str], Heard]:
    return {
        (word, question): await ask(client, word, question, word)
        for word in WORDS
        for question in QUESTIONS
    }


def test_no_canary_sings_anothers_song(served: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with served() as client:
            alone = await each_alone(client)
        async with served(max_running=8, kv_tokens=900) as client:

            async def between(number: int) -> None:
                if number % 5 == 0:
                    word = {"lora_name": WORDS[number // 5 % len(WORDS)]}
                    await client.post("/v1/unload_lora_adapter", json=word)

            heard = await interleaved(
                lambda word, question: ask(client, word, question, word),
                CHATS,
                CONCURRENCY,
                between,
            )
            stats = (await client.get("/v1/engine/stats")).json()
        assert len(heard) == CHATS
        assert wrong_among(heard) == []
        assert furthest_from(alone, heard) <= 1e-5
        # What could have mixed them up has happened: shared steps, reuse, loads and unloads.
        assert stats["generated_tokens"] > 2 * stats["steps"]
        assert stats["prefix_hits"] > 0

    asyncio.run(scenario())


def test_a_wrong_route_would_be_heard(served: Callable[..., Any]) -> None:
    """The control: an engine that takes one adapter's weights for another's."""
    mixed_up = {"jade": "ruby"}

    async def scenario() -> None:
        async with served() as client:
            alone = await each_alone(client)
        async with served() as client:
            heard = await interleaved(
                lambda word, question: ask(client, word, question, mixed_up.get(word, word)),
                40,
                CONCURRENCY,
                _nothing,
            )
        wrong = wrong_among(heard)
        assert {(one.word, one.text) for one in wrong} == {("jade", "ruby")}
        assert furthest_from(alone, heard) > 1

    asyncio.run(scenario())


async def _nothing(number: int) -> None:
    return
