"""Eight adapters of two projects that have each learnt a word, asked at random through the API.

Meanwhile adapters are unloaded, deleted and replaced by others. Minutes long: `make canaries`.
"""

import asyncio
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import AsyncOpenAI, NotFoundError

from app.storage import open_storage
from tests.support.adapters import BASE_NAME
from tests.support.canaries import (
    QUESTIONS,
    WORDS,
    Heard,
    furthest_from,
    interleaved,
    train_canaries,
    wrong_among,
)
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.service import Service, running_service
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter

CHATS, CONCURRENCY = 2000, 16
# Chats between two unloadings, and between two deletions.
UNLOAD_EVERY, DELETE_EVERY = 25, 200
# Of log-probabilities in float32: they are differences of logits of 20 and more, whose last digit
# follows from the order in which a batch's kernels add. Another adapter's are off by more than 1.
TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def canaries(base_model_dir: Path) -> dict[str, LoraAdapter]:
    torch.set_num_threads(1)
    trunk = load_trunk(base_model_dir, DeviceProfile("cpu", "float32", 1))
    # The upper blocks are enough to learn a word, and training them takes a fifth of the time.
    return dict(train_canaries(trunk, learning_rate=6e-3, frozen_layers=24))


@pytest.fixture(scope="module")
def float32_stack(
    models_dir: Path, base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Every process, on any machine in the format in which answers can be compared."""
    settings = {"MODELS_DIR": str(models_dir), "TUNESMITH_DTYPE": "float32"}
    with running_service("up", tmp_path_factory.mktemp("canaries"), settings) as service:
        yield service


class Aviary:
    """The adapters in service: the name that each word has now, and clients of their projects."""

    def __init__(self, stack: Service, canaries: dict[str, LoraAdapter]) -> None:
        self._stack = stack
        self._canaries = canaries
        keys = [stack.new_key("birds-a"), stack.new_key("birds-b")]
        self._keys = {word: keys[number % 2] for number, word in enumerate(WORDS)}
        self._clients = {
            key: AsyncOpenAI(base_url=stack.base_url, api_key=key, timeout=300) for key in keys
        }
        engine_port = stack.environment["ENGINE_PORT"]
        self._engine = httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine_port}", verify=False)
        self.names = {word: self._publish(word) for word in WORDS}
        self.deletion_seconds: list[float] = []
        self.counts: Counter[str] = Counter()

    async def ask(self, word: str, question: str) -> Heard | None:
        client, name = self._clients[self._keys[word]], self.names[word]
        try:
            answer = await client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_completion_tokens=6,
                logprobs=True,
                top_logprobs=5,
            )
        except NotFoundError:
            # Only a model that was deleted meanwhile may be gone.
            assert name != self.names[word]
            self.counts["gone"] += 1
            return None
        (choice,) = answer.choices
        assert choice.logprobs is not None
        logprobs = tuple(
            {str(top.bytes): top.logprob for top in token.top_logprobs}
            for token in choice.logprobs.content or ()
        )
        return Heard(word, question, choice.message.content or "", logprobs)

    async def unload(self, word: str) -> None:
        """Take an adapter out of the engine's memory, as if others had needed its room."""
        body = {"lora_name": self.names[word]}
        response = await self._engine.post("/v1/unload_lora_adapter", json=body)
        self.counts["unloaded"] += response.is_success

    async def replace(self, word: str) -> None:
        """Delete an adapter and serve another one of the same word under a new name."""
        client, old = self._clients[self._keys[word]], self.names[word]
        self.names[word] = await asyncio.to_thread(self._publish, word)
        assert (await client.models.delete(old)).deleted
        started = time.monotonic()
        while True:
            try:
                await client.chat.completions.create(
                    model=old, messages=[{"role": "user", "content": "?"}], max_completion_tokens=1
                )
            except NotFoundError:
                break
        self.deletion_seconds.append(time.monotonic() - started)

    async def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self._engine.get("/v1/engine/stats")).json()
        return found

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        await self._engine.aclose()

    def _publish(self, word: str) -> str:
        name = f"ft:{BASE_MODEL}:acme:{word}:{secrets.token_hex(6)}"
        project = self._stack.project_of(self._keys[word])
        with self._stack.database() as database, database.write() as connection:
            row = add_adapter(connection, project, name)
        storage = open_storage(self._stack.settings.storage_url)
        scratch = storage.scratch()
        save_adapter(scratch, self._canaries[word], BASE_NAME)
        storage.publish(row.storage_prefix, scratch)
        return name


def test_no_canary_sings_anothers_song(
    float32_stack: Service, canaries: dict[str, LoraAdapter]
) -> None:
    async def scenario() -> None:
        aviary = Aviary(float32_stack, canaries)
        alone = {}
        for word in WORDS:
            for question in QUESTIONS:
                answer = await aviary.ask(word, question)
                assert answer is not None
                alone[word, question] = answer
        before = await aviary.stats()
        chance = random.Random(7)

        async def between(number: int) -> None:
            if number % UNLOAD_EVERY == 0:
                await aviary.unload(chance.choice(WORDS))
            if number % DELETE_EVERY == DELETE_EVERY - 1:
                await aviary.replace(chance.choice(WORDS))

        started = time.monotonic()
        heard = await interleaved(aviary.ask, CHATS, CONCURRENCY, between)
        elapsed = time.monotonic() - started
        after = await aviary.stats()
        await aviary.close()

        wrong = wrong_among(heard)
        furthest = furthest_from(alone, heard)
        steps = after["steps"] - before["steps"]
        tokens = after["generated_tokens"] - before["generated_tokens"]
        sys.stdout.write(
            f"\n{len(heard)} chats in {elapsed:.0f} s, {len(wrong)} wrong, "
            f"{aviary.counts['gone']} gone, {aviary.counts['unloaded']} unloaded, "
            f"{len(aviary.deletion_seconds)} deleted within {max(aviary.deletion_seconds):.2f} s; "
            f"{tokens / steps:.1f} tokens a step, "
            f"{after['prefix_hits'] - before['prefix_hits']} prefix hits; "
            f"log-probabilities within {furthest:.1e}"
        )
        assert wrong == []
        assert len(heard) + aviary.counts["gone"] == CHATS
        assert furthest <= TOLERANCE
        assert max(aviary.deletion_seconds) < 1

    asyncio.run(scenario())
