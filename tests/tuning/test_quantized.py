"""Adapters that are trained on a base model in 4 or 8 bits, and served on it as it is."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from app.domain.errors import InvalidInput
from app.domain.job_spec import Quantization
from app.storage.local import LocalStorage
from tests.support.faq import faq_chats
from tests.tasks.conftest import MINILM, FindModel, encoded, loss_of, make_task, task_spec
from tests.training.conftest import SHORT_CHATS, Attempt, RunAttempt, job_spec, put_records
from tests.tuning.samples import SAMPLES
from worker.training.manifest import BaseModelRef
from worker.tuning.loading import load_tuned
from worker.tuning.quantized import QuantizedLayers

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.parametrize("kind", ["nf4", "int8"]),
]

TASK = "text-classification"


def losses_told(attempt: Attempt) -> list[float]:
    """Return the losses on the quantized and on the plain base model."""
    (note,) = (one for one in attempt.last["notes"] if one.startswith("Loss on held-out"))
    words = note.replace(",", "").split()
    return [float(word) for word in words if word[0].isdigit()]


def encoder() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    return BertModel(BertConfig(vocab_size=50, num_attention_heads=2, **sizes)).eval()


def weight_bytes(model: nn.Module) -> int:
    """Return the memory of a model's weights, each counted once."""
    sizes = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in (*model.parameters(), *model.buffers())
        if one.device != torch.device("meta")
    }
    return sum(sizes.values())


def test_layers_take_less_memory_and_come_back_as_they_were(kind: Quantization) -> None:
    model, plain = (encoder().requires_grad_(False) for _ in range(2))
    ids = torch.arange(1, 9)[None]
    expected = plain(ids).last_hidden_state
    before = weight_bytes(model)

    quantized = QuantizedLayers(model, kind, kept=["pooler"])

    assert weight_bytes(model) < before / 2
    assert type(model.pooler.dense) is nn.Linear
    near = model(ids).last_hidden_state.detach()
    error = float((near - expected).norm() / expected.norm())
    assert 1e-4 < error < (0.2 if kind == "nf4" else 0.03)
    # Without gradients it computes the same, and learns as before.
    gradients = []
    for _ in range(2):
        embeddings = torch.ones(1, 3, 64, requires_grad=True)
        model(inputs_embeds=embeddings).last_hidden_state[0, 0, 0].backward()
        gradients.append(embeddings.grad)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).last_hidden_state, near)
    torch.testing.assert_close(*gradients)
    quantized.restore(plain)
    assert torch.equal(model(ids).last_hidden_state, expected)


def test_text_generation_is_judged_as_it_is_served(
    run_attempt: RunAttempt, storage: LocalStorage, tiny_base: BaseModelRef, kind: Quantization
) -> None:
    file = put_records(storage, "train", SHORT_CHATS)
    spec = job_spec(file, file, num_epochs=4, learning_rate=1e-2, base_quantization=kind)
    attempt = run_attempt(spec)

    on_quantized, on_plain = losses_told(attempt)
    report = attempt.last["report"]["metrics"]["loss"]
    assert on_plain == pytest.approx(report["tuned"], abs=1e-4)
    assert on_quantized == pytest.approx(on_plain, abs=0.1)
    assert report["tuned"] < report["base"]
    # Another run on the plain base model starts from it, as from any LoRA.
    directory = storage.directory(f"{attempt.last['prefix']}/adapter")
    plain = AutoModelForCausalLM.from_pretrained(tiny_base.directory)
    before = plain(torch.arange(20)[None]).logits
    loaded = PeftModel.from_pretrained(plain, directory)
    assert not torch.equal(loaded(torch.arange(20)[None]).logits, before)


def test_a_task_is_judged_as_it_is_served(
    run_task: Any, storage: LocalStorage, find_model: FindModel, kind: Quantization
) -> None:
    records = SAMPLES[TASK].records
    directory = find_model(MINILM)
    spec = task_spec(storage, TASK, records, records, num_epochs=3, base_quantization=kind)
    attempt = run_task(spec, directory)

    _, on_plain = losses_told(attempt)
    served = make_task(TASK, directory, records, seed=1)
    served.model = load_tuned(served, storage.directory(f"{attempt.last['prefix']}/adapter"))
    found = loss_of(served, served.collate(encoded(served, records)))
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(on_plain, abs=1e-3)


def test_what_cannot_be_quantized_says_so(
    monkeypatch: pytest.MonkeyPatch, kind: Quantization
) -> None:
    with pytest.raises(InvalidInput, match="no linear layer that could be quantized"):
        QuantizedLayers(nn.Sequential(nn.Conv2d(1, 1, 1)), kind)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match=r"install tunesmith\[quantization\]") as refused:
        QuantizedLayers(nn.Sequential(nn.Linear(2, 2)), kind)
    assert refused.value.param == "tunesmith.training.base_quantization"


@pytest.mark.slow
def test_a_real_model_learns_nearly_as_much(
    run_attempt: RunAttempt, storage: LocalStorage, base_model_dir: Path, kind: Quantization
) -> None:
    chats = faq_chats(80)
    training, heldout = (
        put_records(storage, name, part)
        for name, part in (("train", chats[:64]), ("heldout", chats[64:]))
    )
    base = BaseModelRef("smollm2", str(base_model_dir), "revision-1", "HuggingFaceTB/SmolLM2")
    spec = job_spec(training, heldout, batch_size=8, num_epochs=2, max_length_tokens=128)
    plain = run_attempt(spec, base=base)
    chosen = replace(spec.hyperparameters, base_quantization=kind)
    quantized = run_attempt(replace(spec, job_id="quantized", hyperparameters=chosen), base=base)

    expected = plain.last["report"]["metrics"]["loss"]
    found = quantized.last["report"]["metrics"]["loss"]
    print(kind, expected, found, quantized.last["notes"])  # noqa: T201 - for docs/adapters.md.
    assert found["base"] == pytest.approx(expected["base"], abs=1e-3)
    gain = expected["base"] - expected["tuned"]
    assert found["base"] - found["tuned"] > 0.8 * gain
