"""Means of adapters: equal to what `peft` makes of them, and served as any adapter is."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from app.base_models import InstalledBaseModel
from tests.serving.test_engine_app import answer, chat, completion, refusal
from worker.serving.app import create_app
from worker.serving.settings import EngineSettings
from worker.trunk.lora import LoraAdapter
from worker.trunk.lora_mean import weighted_mean
from worker.trunk.trunk import Trunk

# peft 0.21 reads a name that transformers 5 has given a new one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

LOAD, COMPLETE, CHAT = "/v1/load_lora_adapter", "/v1/completions", "/v1/chat/completions"
WEIGHTS = {"red": 0.3, "green": 0.5, "blue": 0.2}
PROMPT = "The capital of"


def update(adapter: LoraAdapter, path: str) -> Tensor:
    """Return [out, in], what an adapter adds to a layer."""
    pair = adapter.weights.get(path)
    return torch.zeros(()) if pair is None else adapter.scaling * pair.b @ pair.a


def test_the_update_of_every_layer_is_the_mean_of_the_updates(
    random_adapters: dict[str, LoraAdapter],
) -> None:
    adapters = [random_adapters[name] for name in WEIGHTS]
    mean = weighted_mean(adapters, list(WEIGHTS.values()))
    assert set(mean.weights) == {path for adapter in adapters for path in adapter.weights}
    assert mean.spec.r == 4 + 16 + 8
    for path in mean.weights:
        expected = sum(
            weight * update(adapter, path)
            for adapter, weight in zip(adapters, WEIGHTS.values(), strict=True)
        )
        assert torch.allclose(update(mean, path), torch.as_tensor(expected), atol=1e-6), path


@pytest.fixture
def adapter_root(
    tmp_path: Path,
    random_adapters: dict[str, LoraAdapter],
    write_trained: Callable[[Path, LoraAdapter], None],
) -> Path:
    for name, adapter in random_adapters.items():
        write_trained(tmp_path / "adapters" / name / "adapter", adapter)
    return tmp_path / "adapters"


@pytest.fixture
def run(
    trunk: Trunk, installed_base: InstalledBaseModel, adapter_root: Path
) -> Iterator[Callable[[Any], None]]:
    """Run a scenario with a client of an engine."""

    def run(scenario: Any) -> None:
        async def drive() -> None:
            settings = EngineSettings(adapter_root=adapter_root)
            app = create_app(settings, lambda _: installed_base, lambda _: trunk)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
            ):
                await scenario(client)

        asyncio.run(drive())

    yield run
    for name in trunk.adapters:
        trunk.detach(name)


def loading(name: str, weights: dict[str, float]) -> dict[str, Any]:
    paths = {one: f"{one}/adapter" for one in weights}
    return {
        "lora_name": name,
        "lora_path": next(iter(paths.values())),
        "lora_members": [
            {"lora_path": paths[one], "weight": weight} for one, weight in weights.items()
        ],
    }


def of_peft(model: PreTrainedModel, root: Path, prompt: Tensor) -> Tensor:
    """Return [vocabulary], log-probabilities of the next token by `peft`'s own combination."""
    names = list(WEIGHTS)
    wrapped: Any = PeftModel.from_pretrained(model, str(root / names[0] / "adapter"), names[0])
    try:
        for name in names[1:]:
            wrapped.load_adapter(str(root / name / "adapter"), name)
        wrapped.add_weighted_adapter(names, list(WEIGHTS.values()), "mean", "cat")
        wrapped.set_adapter("mean")
        with torch.no_grad():
            logits: Tensor = wrapped(prompt).logits[0, -1]
        return logits.log_softmax(dim=0)
    finally:
        wrapped.unload()


def test_a_mean_answers_as_that_of_peft_does_and_shares_batches(
    run: Callable[[Any], None], adapter_root: Path, reference_model: PreTrainedModel, trunk: Trunk
) -> None:
    prompt = torch.tensor([trunk.tokenizer(PROMPT)["input_ids"]])
    expected = of_peft(reference_model, adapter_root, prompt)

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            response = await client.post(LOAD, json=loading("mean", WEIGHTS))
            assert response.status_code == 200, response.text
        response = await client.post(LOAD, json={"lora_name": "red", "lora_path": "red/adapter"})
        assert response.status_code == 200
        names = ("mean", "red", "smollm2-135m")
        asked = [completion(model=name, logprobs=5, max_tokens=1) for name in names]
        alone = [await answer(client, COMPLETE, body) for body in asked]
        (top,) = alone[0]["choices"][0]["logprobs"]["top_logprobs"]
        best = expected.topk(5)
        found = sorted(top.values(), reverse=True)[:5]
        assert found == pytest.approx(best.values.tolist(), abs=1e-3)
        together = await asyncio.gather(*(answer(client, COMPLETE, body) for body in asked))
        for one, other in zip(alone, together, strict=True):
            (ours,), (theirs,) = (
                each["choices"][0]["logprobs"]["top_logprobs"] for each in (one, other)
            )
            assert ours == pytest.approx(theirs, abs=1e-3)
        fingerprints = {one["system_fingerprint"] for one in alone}
        assert len(fingerprints) == 3

    run(scenario)


def test_a_mean_with_other_weights_has_another_fingerprint(run: Callable[[Any], None]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        fingerprints = []
        for number, share in enumerate((0.25, 0.75)):
            body = loading(f"mean-{number}", {"red": share, "green": 1 - share})
            assert (await client.post(LOAD, json=body)).status_code == 200
            told = await answer(client, CHAT, chat(model=f"mean-{number}", max_tokens=1))
            fingerprints.append(told["system_fingerprint"])
        assert fingerprints[0] != fingerprints[1]

    run(scenario)


def test_what_has_no_mean_is_refused(run: Callable[[Any], None], adapter_root: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        outside = loading("x", {"red": 1.0})
        outside["lora_members"][0]["lora_path"] = "/etc"
        assert (await refusal(client, LOAD, outside, 400))["param"] == "lora_path"
        heavy = loading("x", {"red": 1.5})
        assert "weight" in (await refusal(client, LOAD, heavy, 400))["param"]
        weights = adapter_root / "green" / "adapter" / "adapter_model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        damaged = loading("x", {"red": 0.5, "green": 0.5})
        assert (await refusal(client, LOAD, damaged, 400))["code"] == "checkpoint_corrupt"

    run(scenario)
