"""The engine as a process of its own: real sockets, and the unmodified client of OpenAI's users."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from app.base_models import InstalledBaseModel
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.service import REPOSITORY
from worker.trunk.half import is_available
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter

MODEL = "smollm2-135m"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ENDLESS = {
    "model": MODEL,
    "prompt": "Once upon a time",
    "max_tokens": 1500,
    "temperature": 0,
    "logit_bias": {"0": -100, "2": -100},
}


@dataclass(frozen=True)
class EngineProcess:
    """A running engine."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.url}/v1/engine/stats").json()
        return stats

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def directory(
    tmp_path_factory: pytest.TempPathFactory,
    installed_base: InstalledBaseModel,
    random_adapters: dict[str, LoraAdapter],
) -> Path:
    """A data directory with a catalogue of one base model, and adapters of it."""
    directory = tmp_path_factory.mktemp("engine")
    (directory / "models.toml").write_text(
        f'[[models]]\nid = "{MODEL}"\nname = "{installed_base.name}"\n'
        f'source = "dir:{installed_base.directory}"\ntasks = ["text-generation"]\n'
        'context_length = 2048\nlicence = "Apache-2.0"\n'
    )
    for name, adapter in random_adapters.items():
        (directory / "storage" / name).mkdir(parents=True)
        save_adapter(directory / "storage" / name, adapter, installed_base.name)
    return directory


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[EngineProcess]:
    with running_engine(directory) as engine:
        yield engine


@contextmanager
def running_engine(directory: Path) -> Iterator[EngineProcess]:
    """Run an engine until the block ends; it must then follow whoever held its input."""
    port = free_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "TUNESMITH_DATA_DIR": str(directory),
        "TUNESMITH_THREADS": "1",
        "ENGINE_PORT": str(port),
        "ENGINE_PRELOAD": MODEL,
    }
    with (directory / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.serving.server", "--exit-with-stdin"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    engine = EngineProcess(process, port)
    assert process.stdin is not None
    try:
        eventually(lambda: _is_ready(engine), what="the engine is ready", within_seconds=120)
        yield engine
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def test_the_openai_client_streams_and_waits(engine: EngineProcess) -> None:
    async def scenario() -> None:
        async with engine.client() as client:
            whole = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=20
            )
            assert whole.choices[0].message.content == "The capital of France is Paris."
            assert whole.choices[0].finish_reason == "stop"
            assert whole.usage is not None
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=QUESTION,
                temperature=0,
                max_completion_tokens=20,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
            assert "".join(texts) == whole.choices[0].message.content
            assert sum(map(bool, texts)) > 3
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
            completion = await client.completions.create(
                model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=3, logprobs=1
            )
            assert completion.choices[0].logprobs is not None
            with pytest.raises(openai.BadRequestError, match="frobnicate") as refused:
                await client.chat.completions.create(
                    model=MODEL, messages=QUESTION, extra_body={"frobnicate": 1}
                )
            assert refused.value.param == "frobnicate"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="gpt-9", messages=QUESTION)

    asyncio.run(scenario())


@pytest.mark.skipif(not is_available(), reason="torch has no such products here")
def test_published_weights_are_read_in_16_bits(engine: EngineProcess, directory: Path) -> None:
    httpx.post(f"{engine.url}/v1/completions", json={**ENDLESS, "max_tokens": 1}).raise_for_status()

    assert "is read in 16 bits" in (directory / "engine.log").read_text()


def test_what_the_api_asks_all_the_time_is_not_logged(
    engine: EngineProcess, directory: Path
) -> None:
    for path in ("/health", "/v1/models", "/v1/engine/stats", "/v1/models?last=1"):
        httpx.get(f"{engine.url}{path}").raise_for_status()
    log = directory / "engine.log"
    eventually(lambda: "?last=1" in log.read_text(), what="the last one is logged")
    for path in ("/health", "/v1/models", "/v1/engine/stats"):
        assert f'"GET {path} HTTP' not in log.read_text()


def test_streams_of_many_adapters_at_once_are_what_each_is_alone(engine: EngineProcess) -> None:
    names = ("red", "green", "blue")

    async def ask(client: AsyncOpenAI, model: str) -> str:
        stream = await client.completions.create(
            model=model, prompt="The weather in London is", temperature=0, max_tokens=5, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def scenario() -> None:
        for name in names:
            body = {"lora_name": name, "lora_path": name}
            httpx.post(f"{engine.url}/v1/load_lora_adapter", json=body).raise_for_status()
        async with engine.client() as client:
            alone = [await ask(client, model) for model in (MODEL, *names)]
            steps = engine.stats()["steps"]
            together = await asyncio.gather(*(ask(client, m) for m in (MODEL, *names) * 2))
            assert together == alone * 2
            assert len(set(alone)) > 1
            # Eight answers of five tokens one after another would take 40 steps.
            assert engine.stats()["steps"] - steps < 20

    asyncio.run(scenario())


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(engine: EngineProcess, is_stream: bool) -> None:
    before = engine.stats()
    with connection(engine, {**ENDLESS, "stream": is_stream, "n": 2}):
        eventually(lambda: engine.stats()["running"] == 2, what="it runs", every_seconds=0.02)
    eventually(lambda: engine.stats()["running"] == 0, what="it has ended", within_seconds=10)
    after = engine.stats()
    assert after["cancelled"] == before["cancelled"] + 2
    assert after["generated_tokens"] - before["generated_tokens"] < 200


def test_a_client_that_does_not_read_holds_up_no_one(engine: EngineProcess) -> None:
    with connection(engine, {**ENDLESS, "stream": True, "logprobs": 20}):
        eventually(lambda: engine.stats()["running"] == 1, what="it runs", every_seconds=0.02)
        body = {**ENDLESS, "max_tokens": 5}
        answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=30).json()
        assert answer["usage"]["completion_tokens"] == 5
    eventually(lambda: engine.stats()["running"] == 0, what="it has ended", within_seconds=10)


def test_sigterm_lets_a_running_stream_end(directory: Path) -> None:
    with running_engine(directory) as engine:
        body = {**ENDLESS, "max_tokens": 15, "stream": True}
        with httpx.stream("POST", f"{engine.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            engine.process.send_signal(signal.SIGTERM)
            eventually(lambda: not _accepts(engine), what="it takes no new connections")
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
        assert engine.process.wait(30) == 0


@contextmanager
def connection(engine: EngineProcess, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Send a request and read nothing of its answer; the connection closes with the block."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: {len(content)}"
    with socket.create_connection(("127.0.0.1", engine.port)) as sock:
        sock.sendall(head.encode() + b"\r\n\r\n" + content)
        yield sock


def _is_ready(engine: EngineProcess) -> bool:
    assert engine.process.poll() is None, f"it ended with status {engine.process.returncode}"
    with suppress(httpx.TransportError):
        return httpx.get(f"{engine.url}/health").is_success
    return False


def _accepts(engine: EngineProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", engine.port)).close()
    except ConnectionRefusedError:
        return False
    return True
