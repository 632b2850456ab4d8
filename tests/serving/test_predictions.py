"""Predictions and embeddings of the engine, in process, with models that were trained for it."""

import asyncio
import base64
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from app.base_models import InstalledBaseModel, ensure_installed, load_catalogue
from app.domain.errors import (
    DomainError,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    TooManyRequests,
)
from app.domain.job_spec import AdapterSpec
from app.domain.tasks import TASKS
from app.inference import AdapterFiles, Caller
from app.inference.openai_http import OpenAIHTTPEngine
from app.storage.local import LocalStorage
from tests.support.service import REPOSITORY
from tests.tasks.conftest import task_spec
from worker.serving.app import create_app
from worker.serving.engine import Engine
from worker.serving.prediction_loop import PredictionLoop
from worker.serving.prediction_request import Asked, Predicted, TaskModel
from worker.serving.settings import EngineSettings
from worker.tasks import Example
from worker.training.bases import WarmBases
from worker.training.commands import CommandQueue, Train
from worker.training.manifest import BaseModelRef
from worker.training.run import run_job
from worker.trunk.device import DeviceProfile
from worker.trunk.listing import write_listing

# peft 0.21 reads a name that transformers 5 has given a new one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

MINILM = "all-minilm-l6-v2"
CALLER = Caller("proj_1")
CPU = DeviceProfile("cpu", "float32", 1)
LOAD, PREDICT, EMBED = "/v1/load_lora_adapter", "/v1/predictions", "/v1/embeddings"

OPINIONS = [
    {"text": f"That was a {word} {thing}.", "label": label}
    for label, words in {"praise": ("fine", "lovely"), "blame": ("dull", "poor")}.items()
    for word in words
    for thing in ("film", "book", "meal", "hotel")
]
TOPICS = [
    {"text": text, "label": label}
    for label, texts in {
        "food": ("the soup was cold", "we had bread and wine"),
        "travel": ("the train was late", "our flight was fine"),
        "sport": ("they lost the match", "she ran ten miles"),
    }.items()
    for text in texts
]
PAIRS = [
    {"anchor": "the cat sleeps", "positive": "a kitten naps"},
    {"anchor": "rates went up", "positive": "interest rose"},
    {"anchor": "it rains", "positive": "the weather is wet"},
    {"anchor": "he sings", "positive": "a man performs a song"},
]
# From three tokens to more than two hundred.
TEXTS = ["ok", "That was a lovely meal.", "The train was dull. " * 40, "x " * 90, "a film"]

Scenario = Callable[[httpx.AsyncClient, Engine], Awaitable[None]]
RunScenario = Callable[..., None]


@pytest.fixture(scope="module")
def base(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> InstalledBaseModel:
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    return ensure_installed(catalogue.get(MINILM), models_dir)


@pytest.fixture(scope="module")
def trained(base: InstalledBaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a few models, trained for some steps each: `opinions`, `topics`, `pairs`."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    storage = LocalStorage(root)
    reference = BaseModelRef(base.id, str(base.directory), base.revision, base.name)
    for name, task, records in (
        ("opinions", "text-classification", OPINIONS),
        ("topics", "text-classification", TOPICS),
        ("pairs", "feature-extraction", PAIRS),
    ):
        implementation = TASKS[task].implementation
        assert implementation is not None
        adapter = AdapterSpec(options={"r": 4})
        spec = task_spec(storage, task, records, adapter=adapter, learning_rate=1e-2, num_epochs=3)
        command = Train(
            epoch=1,
            spec=replace(spec, evaluation=replace(spec.evaluation, holdout=0.0)),
            implementation=implementation,
            base=reference,
            storage_url=f"file://{root}",
            checkpoint_prefix=f"jobs/{name}",
            resume_from=None,
            deadline_file=None,
            checkpoint_interval_seconds=300.0,
        )
        run_job(command, WarmBases(CPU), CommandQueue(), _send_nowhere, token_budget=1024)
        storage.delete("files/train")
        *_, last = sorted((root / "jobs" / name).iterdir(), key=lambda path: path.stat().st_mtime)
        last.rename(root / name)
    return root


@pytest.fixture
def adapter_root(trained: Path, tmp_path: Path) -> Path:
    for name in ("opinions", "topics", "pairs"):
        shutil.copytree(trained / name, tmp_path / "storage" / name)
    return tmp_path / "storage"


@pytest.fixture
def with_engine(base: InstalledBaseModel, adapter_root: Path) -> RunScenario:
    """Run a scenario with a client of an engine that has the given settings and models."""

    def find_base(name: str) -> InstalledBaseModel:
        if name not in (base.id, base.name):
            raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
        return base

    def refuse_trunk(directory: Path) -> Any:
        raise AssertionError("no text is generated here")

    def run(scenario: Scenario, loaded: Sequence[str] = (), **settings: Any) -> None:
        async def drive() -> None:
            app = create_app(
                EngineSettings(adapter_root=adapter_root, **settings), find_base, refuse_trunk, CPU
            )
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
            ):
                for name in loaded:
                    await answer(client, LOAD, loading(name))
                await scenario(client, app.state.engine)

        asyncio.run(drive())

    return run


def loading(name: str) -> dict[str, Any]:
    return {"lora_name": name, "lora_path": f"{name}/adapter"}


async def answer(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json() if path != LOAD else None


async def predictions(client: httpx.AsyncClient, model: str, inputs: Any, **more: Any) -> Any:
    body = {"model": model, "inputs": inputs, "parameters": more}
    return (await answer(client, PREDICT, body))["predictions"]


async def refusal(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int = 400
) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def scores(prediction: Any) -> dict[str, float]:
    return {one["label"]: one["score"] for one in prediction}


def test_predictions_are_those_of_the_pipeline_with_plain_peft(
    with_engine: RunScenario, base: InstalledBaseModel, adapter_root: Path
) -> None:
    directory = adapter_root / "topics" / "adapter"
    labels = json.loads((directory / "task.json").read_text())["outline"]["labels"]
    plain = AutoModelForSequenceClassification.from_pretrained(
        base.directory,
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model: Any = PeftModel.from_pretrained(plain, str(directory)).eval()
    classify: Any = pipeline(
        "text-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(directory),
        top_k=None,
        device="cpu",
    )
    with torch.no_grad():
        expected = [scores(classify([text])[0]) for text in TEXTS]

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        got = await answer(
            client, PREDICT, {"model": "topics", "inputs": TEXTS, "parameters": {"top_k": None}}
        )
        assert got["id"].startswith("pred-")
        assert got["object"] == "prediction"
        assert (got["model"], got["task"]) == ("topics", "text-classification")
        for theirs, ours in zip(expected, got["predictions"], strict=True):
            assert scores(ours) == pytest.approx(theirs, abs=1e-5)
            assert [one["score"] for one in ours] == sorted(scores(ours).values(), reverse=True)
        assert got["usage"]["inputs"] == len(TEXTS)
        assert got["usage"]["input_tokens"] > 200
        assert got["truncated_inputs"] == []
        cut = await answer(client, PREDICT, {"model": "topics", "inputs": ["ok", "word " * 600]})
        assert cut["truncated_inputs"] == [1]
        assert cut["usage"]["input_tokens"] == 3 + 512

    with_engine(scenario, loaded=["topics"])


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_a_batch_of_mixed_sizes_gives_what_each_input_gives_alone(
    with_engine: RunScenario, budget: int
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        alone = [(await predictions(client, "opinions", t, top_k=None))[0] for t in TEXTS]
        passes = engine.tasks.loop.stats().passes
        together = await predictions(client, "opinions", TEXTS, top_k=None)
        for one, other in zip(alone, together, strict=True):
            assert scores(one) == pytest.approx(scores(other), abs=1e-5)
        passes = engine.tasks.loop.stats().passes - passes
        assert passes == {1: 5, 100: 4, 10_000: 1}[budget]

    with_engine(scenario, loaded=["opinions"], prediction_tokens_per_pass=budget)


def test_models_of_one_base_answer_at_once_as_they_do_alone_and_share_its_weights(
    with_engine: RunScenario,
) -> None:
    names = ("opinions", "topics", "pairs")

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        alone = {
            (name, text): (await predictions(client, name, text))[0]
            for name in names
            for text in TEXTS
        }
        before = engine.tasks.loop.stats()
        asked = [(name, text) for text in TEXTS for name in names] * 2
        together = await asyncio.gather(*(predictions(client, *one) for one in asked))
        for one, found in zip(asked, together, strict=True):
            if one[0] == "pairs":
                assert found[0] == pytest.approx(alone[one], abs=1e-5)
            else:
                assert scores(found[0]) == pytest.approx(scores(alone[one]), abs=1e-5)
        after = engine.tasks.loop.stats()
        assert after.predicted - before.predicted == len(asked)
        # What waits is computed together.
        assert after.passes - before.passes < len(asked) / 2

        opinions, topics, pairs = (one.model for one in engine.tasks.models())
        for name, weight in opinions.base_weights.items():
            if not name.startswith(("classifier", "pooler")):
                shared = {one.base_weights[name].data_ptr() for one in (topics, pairs)}
                assert shared == {weight.data_ptr()}, name

    with_engine(scenario, loaded=names)


def test_the_least_recently_used_model_makes_room_and_comes_back_by_itself(
    with_engine: RunScenario, adapter_root: Path
) -> None:
    files = {
        name: AdapterFiles(name, adapter_root / name / "adapter") for name in ("opinions", "topics")
    }

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        api = OpenAIHTTPEngine(client)

        async def ask(name: str) -> Any:
            body = {"model": name, "inputs": TEXTS}
            return (await api.complete(PREDICT, body, files[name], CALLER))["predictions"]

        first = await ask("opinions")
        await ask("topics")
        assert [model.name for model in engine.tasks.models()] == ["topics"]
        body = {"model": "opinions", "inputs": "ok"}
        assert (await refusal(client, PREDICT, body, 404))["code"] == "model_not_found"
        assert await ask("opinions") == first
        assert [model.name for model in engine.tasks.models()] == ["opinions"]
        unloaded = await client.post("/v1/unload_lora_adapter", json={"lora_name": "opinions"})
        assert unloaded.status_code == 200
        assert engine.tasks.models() == []

    with_engine(scenario, max_task_models=1)


def test_a_model_in_use_does_not_make_room(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        busy = asyncio.create_task(predictions(client, "opinions", ["word " * 300] * 12))
        while not engine.tasks.loop.stats().waiting:
            await asyncio.sleep(0.001)
        await refusal(client, LOAD, loading("topics"), 503)
        assert len(await busy) == 12
        await answer(client, LOAD, loading("topics"))

    with_engine(scenario, loaded=["opinions"], max_task_models=1, prediction_tokens_per_pass=1)


def test_damaged_files_are_not_served(with_engine: RunScenario, adapter_root: Path) -> None:
    def directory(name: str) -> Path:
        copy = adapter_root / name
        shutil.copytree(adapter_root / "opinions", copy)
        return copy / "adapter"

    for name in ("adapter_model.safetensors", "task.json", "tokenizer.json"):
        path = directory(f"flipped-{name}") / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        (directory(f"gone-{name}") / name).unlink()
    manifests: dict[str, Callable[[dict[str, Any]], Any]] = {
        "revision": lambda it: it["base_model"].update(revision="r2"),
        "base": lambda it: it["base_model"].update(id="other"),
        "tokenizer": lambda it: it.update(tokenizer_sha256=None),
        "task": lambda it: it.update(task="question-answering"),
    }
    for what, change in manifests.items():
        path = directory(f"other-{what}") / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        relist(path.parent.parent)
    # Good by its list, but not what its base model needs.
    path = directory("unfit") / "adapter_model.safetensors"
    save_file({name: one[:1].clone() for name, one in load_file(path).items()}, path)
    relist(path.parent.parent)

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        for path in sorted(adapter_root.iterdir()):
            kind, _, file = path.name.partition("-")
            if kind not in ("flipped", "gone", "other", "unfit"):
                continue
            error = await refusal(client, LOAD, loading(path.name))
            if kind in ("flipped", "gone"):
                assert error["code"] == "checkpoint_corrupt"
                assert file in error["message"]
            elif file in ("revision", "tokenizer"):
                assert error["code"] == "adapter_mismatch"
        assert engine.tasks.models() == []
        await answer(client, LOAD, loading("opinions"))
        assert len(await predictions(client, "opinions", TEXTS)) == len(TEXTS)

    with_engine(scenario)


def test_a_model_that_breaks_harms_no_other(with_engine: RunScenario, adapter_root: Path) -> None:
    shutil.copytree(adapter_root / "opinions", adapter_root / "broken")
    path = adapter_root / "broken" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    relist(adapter_root / "broken")

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        good, error = await asyncio.gather(
            predictions(client, "opinions", TEXTS),
            refusal(client, PREDICT, {"model": "broken", "inputs": TEXTS}, 500),
        )
        assert len(good) == len(TEXTS)
        assert (error["code"], error["type"]) == ("prediction_failed", "server_error")
        assert (await client.get("/health")).status_code == 200

    with_engine(scenario, loaded=["opinions", "broken"])


def test_requests_that_are_refused(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        body = {"model": "opinions", "inputs": "ok"}
        for changes, param in (
            ({"inputs": 7}, "inputs"),
            ({"inputs": ["ok", 7]}, "inputs[1]"),
            ({"inputs": {"text": "ok", "pair": "ok"}}, "inputs"),
            ({"inputs": []}, "inputs"),
            ({"inputs": ["ok"] * 257}, "inputs"),
            ({"inputs": None}, "inputs"),
            ({"parameters": {"top_k": "1"}}, "parameters.top_k"),
            ({"parameters": 1}, "parameters"),
            ({"frobnicate": 1}, "frobnicate"),
        ):
            assert (await refusal(client, PREDICT, {**body, **changes}))["param"] == param
        embedding = {"model": MINILM, "input": "ok"}
        for changes, param in (
            ({"input": ""}, "input"),
            ({"input": [[101]]}, "input"),
            ({"input": ["ok"] * 2049}, "input"),
            ({"encoding_format": "int8"}, "encoding_format"),
            ({"dimensions": 64}, "dimensions"),
            ({"input": ["ok", "word " * 600]}, "input[1]"),
        ):
            assert (await refusal(client, EMBED, {**embedding, **changes}))["param"] == param

        chat = {"messages": [{"role": "user", "content": "hello"}]}
        for path, fields, told in (
            ("/v1/chat/completions", {"model": "opinions", **chat}, PREDICT),
            ("/v1/chat/completions", {"model": MINILM, **chat}, EMBED),
            ("/v1/completions", {"model": "pairs", "prompt": "ok"}, EMBED),
            (EMBED, {"model": "opinions", "input": "ok"}, PREDICT),
        ):
            error = await refusal(client, path, fields)
            assert (error["param"], error["code"]) == ("model", "wrong_route")
            assert told in error["message"]
        await refusal(client, PREDICT, {**body, "model": "gpt-9"}, 404)
        await refusal(client, LOAD, {**loading("opinions"), "lora_path": "topics/adapter"})
        await refusal(client, LOAD, {**loading("opinions"), "lora_name": MINILM})

    with_engine(scenario, loaded=["opinions", "pairs"])


def test_bodies_have_limits_of_their_own(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        await refusal(client, EMBED, {"model": MINILM, "input": "x" * 2000}, 413)
        await refusal(client, PREDICT, {"model": MINILM, "inputs": "x" * 5000}, 413)
        assert len(await predictions(client, MINILM, "x" * 2000)) == 1

    with_engine(scenario, max_body_bytes=1900, max_prediction_bytes=4900)


def test_a_base_encoder_embeds_by_the_mean_of_its_tokens(
    with_engine: RunScenario, base: InstalledBaseModel
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    encoder = AutoModel.from_pretrained(base.directory, dtype=torch.float32).eval()

    def mean(text: str) -> list[float]:
        with torch.no_grad():
            hidden: Tensor = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector: list[float] = nn.functional.normalize(hidden.mean(dim=0), dim=0).tolist()
        return vector

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        got = await answer(client, EMBED, {"model": MINILM, "input": TEXTS, "user": "me"})
        assert (got["object"], got["model"]) == ("list", MINILM)
        assert [one["index"] for one in got["data"]] == list(range(len(TEXTS)))
        for one, text in zip(got["data"], TEXTS, strict=True):
            assert one["object"] == "embedding"
            assert one["embedding"] == pytest.approx(mean(text), abs=1e-5)
        used = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
        assert got["usage"] == {"prompt_tokens": used, "total_tokens": used}
        body = {"model": base.name, "input": TEXTS[1], "encoding_format": "base64"}
        (one,) = (await answer(client, EMBED, {**body, "dimensions": 384}))["data"]
        packed = base64.b64decode(one["embedding"])
        assert list(struct.unpack("<384f", packed)) == pytest.approx(mean(TEXTS[1]), abs=1e-5)

        ours = await answer(client, EMBED, {"model": "pairs", "input": TEXTS[1]})
        assert ours["data"][0]["embedding"] != pytest.approx(mean(TEXTS[1]), abs=1e-2)
        models = (await client.get("/v1/models")).json()["data"]
        assert {model["id"]: model["parent"] for model in models} == {MINILM: None, "pairs": MINILM}

    with_engine(scenario, loaded=["pairs"], preload=(MINILM,))


def test_pairs_are_scored_as_they_are_predicted_and_embedded(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        texts = ["a lovely meal", "a dull film"]
        inputs = [{"text": "That was", "text_pair": text} for text in texts]
        expected = [scores(one) for one in await predictions(client, "opinions", inputs, top_k=2)]

        async def scored(**fields: Any) -> list[float]:
            body = {"text_1": "That was", "text_2": texts, **fields}
            got = await answer(client, "/v1/score", body)
            assert (got["object"], got["model"]) == ("list", fields["model"])
            assert [one["index"] for one in got["data"]] == list(range(len(got["data"])))
            assert got["usage"]["total_tokens"] == got["usage"]["prompt_tokens"] > 0
            return [one["score"] for one in got["data"]]

        # The second label by default, or the one that is named.
        for label, fields in (("praise", {}), ("blame", {"tunesmith": {"label": "blame"}})):
            got = await scored(model="opinions", **fields)
            assert got == pytest.approx([one[label] for one in expected], abs=1e-5)
        again = await scored(model="opinions", text_1=["That was"] * 2)
        assert again == pytest.approx([one["praise"] for one in expected], abs=1e-5)

        for model in (MINILM, "pairs"):
            body = {"model": model, "input": ["That was", *texts]}
            first, *others = (await answer(client, EMBED, body))["data"]
            cosines = [_dot(first["embedding"], other["embedding"]) for other in others]
            assert await scored(model=model) == pytest.approx(cosines, abs=1e-5)
            (same,) = await scored(model=model, text_2="That was")
            assert same == pytest.approx(1.0, abs=1e-5)

        for fields, param in (
            ({"model": "topics"}, "tunesmith.label"),
            ({"model": "opinions", "tunesmith": {"label": "rain"}}, "tunesmith.label"),
            ({"model": "pairs", "tunesmith": {"label": "rain"}}, "tunesmith.label"),
            ({"model": "opinions", "text_1": ["a", "b", "c"]}, "text_2"),
            ({"model": "opinions", "text_2": []}, "text_2"),
            ({"model": "opinions", "text_2": ["a", "word " * 1000]}, "text_2[1]"),
            ({"model": "pairs", "text_1": "word " * 1000}, "text_1"),
            ({"model": "opinions", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ):
            body = {"text_1": "That was", "text_2": texts, **fields}
            assert (await refusal(client, "/v1/score", body))["param"] == param

    with_engine(scenario, loaded=["opinions", "topics", "pairs"])


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_a_client_that_leaves_ends_its_request(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        app: Any = transport.app
        body = json.dumps({"model": "opinions", "inputs": ["word " * 300] * 200}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while engine.tasks.loop.stats().predicted < 2:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": []}
        await app({**scope, "query_string": b"", "http_version": "1.1"}, receive, send)
        assert sent[0]["status"] == 499
        # What others ask for is next.
        await predictions(client, "opinions", "ok")
        stats = engine.tasks.loop.stats()
        assert stats.waiting == 0
        assert stats.predicted < 100
        assert stats.dropped > 100

    with_engine(scenario, loaded=["opinions"], prediction_tokens_per_pass=1)


def test_a_full_queue_asks_to_come_back(with_engine: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        # More than the queue holds, but nothing waits yet.
        first = asyncio.create_task(predictions(client, "opinions", ["word " * 300] * 12))
        while not engine.tasks.loop.stats().waiting:
            await asyncio.sleep(0.001)
        response = await client.post(PREDICT, json={"model": "topics", "inputs": ["ok"] * 9})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert len(await first) == 12
        assert len(await predictions(client, "topics", ["ok"] * 9)) == 9

    with_engine(
        scenario,
        loaded=["opinions", "topics"],
        prediction_tokens_per_pass=1,
        max_queued_predictions=8,
    )


def test_an_engine_that_serves_none_of_them_starts_without_their_libraries() -> None:
    code = (
        "import sys, worker.serving.server; "
        "print([name for name in ('peft', 'sklearn', 'captum') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@dataclass
class Counting:
    """A task on numbers, which notes what it was asked for; 13 fails whole passes."""

    asked: list[list[int]]

    def encode_input(self, value: Any) -> Example:
        if value == 7:
            raise InvalidInput("expected another number", param="inputs.number")
        return Example(features={"number": value}, target=None, cost=value)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        numbers = [example.features["number"] for example in examples]
        self.asked.append(numbers)
        if 13 in numbers:
            raise RuntimeError("13")
        return {"numbers": torch.tensor(numbers)}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
        return (batch["numbers"] * 2).tolist()


class TestLoop:
    """The loop by itself, held up by a first request until all others wait."""

    @pytest.fixture
    def loop(self) -> Iterator[PredictionLoop]:
        loop = PredictionLoop(budget=10, max_queued=100)
        yield loop
        loop.close()

    def together(
        self, loop: PredictionLoop, requests: Sequence[tuple[str, Sequence[int]]]
    ) -> tuple[list[Any], list[tuple[str, list[int]]]]:
        """Return the results of requests that wait at the same time, and the passes in order."""
        passes: list[tuple[str, list[int]]] = []
        models = {}
        for name in {name for name, _ in requests}:
            task: Any = Counting([])
            models[name] = TaskModel(task, nn.Linear(1, 1), {})
        with loop._changed:
            futures = [
                loop.submit(Asked(models[name], list(inputs), lambda e, p: p, "in[{}]".format))
                for name, inputs in requests
            ]
        results: list[Any] = []
        for future in futures:
            try:
                results.append(future.result(10))
            except DomainError as error:
                results.append(error)
        for name, model in models.items():
            task = model.task
            passes += [(name, numbers) for numbers in task.asked]
        return results, passes

    def test_a_pass_holds_what_the_budget_holds_once_padded(self, loop: PredictionLoop) -> None:
        (one, other), passes = self.together(loop, [("a", [2, 3, 1, 4]), ("a", [20, 1])])
        assert one == Predicted([4, 6, 2, 8], tokens=10, truncated=[])
        assert other.answers == [40, 2]
        assert passes == [("a", [2, 3, 1]), ("a", [4]), ("a", [20]), ("a", [1])]

    def test_models_take_turns(self, loop: PredictionLoop) -> None:
        ended: list[str] = []
        models = [TaskModel(_counting(), nn.Linear(1, 1), {}) for _ in range(2)]
        with loop._changed:
            futures = [
                loop.submit(Asked(model, [9] * inputs, lambda e, p: p, str))
                for model, inputs in ((models[0], 50), (models[1], 1))
            ]
            for name, future in zip(("long", "short"), futures, strict=True):
                future.add_done_callback(lambda _, name=name: ended.append(name))
        for future in futures:
            future.result(10)
        assert ended == ["short", "long"]

    def test_projects_take_turns_and_share_passes(self, loop: PredictionLoop) -> None:
        task: Any = _counting()
        model = TaskModel(task, nn.Linear(1, 1), {})
        big, small, late = ([5] * 4, "big"), ([5, 5], "small"), ([1], "big")
        with loop._changed:
            futures = [
                loop.submit(Asked(model, inputs, lambda e, p: p, str, caller=Caller(project)))
                for inputs, project in (big, small, late)
            ]
        for future in futures:
            future.result(10)
        assert task.asked == [[5, 5], [5, 5], [5, 5], [1]]

        # A small input of one project does not keep the large one of another out for ever.
        task.asked.clear()
        with loop._changed:
            futures = [
                loop.submit(Asked(model, inputs, lambda e, p: p, str, caller=Caller(project)))
                for inputs, project in (([1] * 9, "many"), ([10], "large"))
            ]
        for future in futures:
            future.result(10)
        assert task.asked.index([10]) == 1

    def test_low_priority_waits_for_the_rest(self, loop: PredictionLoop) -> None:
        task: Any = _counting()
        model = TaskModel(task, nn.Linear(1, 1), {})
        with loop._changed:
            futures = [
                loop.submit(Asked(model, inputs, lambda e, p: p, str, caller=caller))
                for inputs, caller in (([9, 8], Caller("a", "low")), ([6, 6], Caller("a")))
            ]
        for future in futures:
            future.result(10)
        assert task.asked == [[6], [6], [9], [8]]

    def test_a_project_that_fills_its_queue_leaves_room_for_others(self) -> None:
        loop = PredictionLoop(budget=10, max_queued=8, max_queued_per_project=5)
        model = TaskModel(_counting(), nn.Linear(1, 1), {})

        def asked(count: int, project: str) -> Asked:
            return Asked(model, [1] * count, lambda e, p: p, str, caller=Caller(project))

        try:
            with loop._changed:
                futures = [loop.submit(asked(5, "a"))]
                with pytest.raises(TooManyRequests) as refused:
                    loop.submit(asked(1, "a"))
                assert (refused.value.retry_after_seconds or 0) >= 1
                futures.append(loop.submit(asked(3, "b")))
                with pytest.raises(TooManyRequests):
                    loop.submit(asked(1, "c"))
            assert [len(future.result(10).answers) for future in futures] == [5, 3]
            assert loop.stats().refused == 2
        finally:
            loop.close()

    def test_one_request_does_not_fail_with_another(self, loop: PredictionLoop) -> None:
        (good, failed, refused, after), _ = self.together(
            loop, [("a", [1, 2]), ("a", [2, 13]), ("a", [1, 7]), ("a", [3])]
        )
        assert good.answers == [2, 4]
        assert failed.code == "prediction_failed"
        assert isinstance(refused, InvalidInput)
        assert refused.param == "in[1].number"
        assert after.answers == [6]

    def test_what_waits_at_the_end_is_told(self, loop: PredictionLoop) -> None:
        model = TaskModel(_counting(), nn.Linear(1, 1), {})
        with loop._changed:
            waiting = loop.submit(Asked(model, [1], lambda e, p: p, str))
            loop._is_closing = True
        with pytest.raises(EngineUnavailable):
            waiting.result(10)
        with pytest.raises(EngineUnavailable):
            loop.submit(Asked(model, [1], lambda e, p: p, str))

    def test_what_nobody_waits_for_leaves_its_place(self, loop: PredictionLoop) -> None:
        model = TaskModel(_counting(), nn.Linear(1, 1), {})
        asked = Asked(model, [1] * 100, lambda e, p: p, str)
        with loop._changed:
            first = loop.submit(asked)
            with pytest.raises(TooManyRequests):
                loop.submit(asked)
            assert first.cancel()
            second = loop.submit(asked)
        assert len(second.result(10).answers) == 100
        assert loop.stats().dropped == 100
        assert loop.is_idle(model)


def _counting() -> Any:
    return Counting([])


def relist(checkpoint: Path) -> None:
    (checkpoint / "files.json").unlink()
    write_listing(checkpoint)


def _send_nowhere(type: str, /, **fields: Any) -> None:
    return
