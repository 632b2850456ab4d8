"""GGUF: read by others than its writer, with the tokenizer and the template in it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from app.domain.errors import ExportFailed
from app.domain.job_spec import AdapterSpec
from app.storage.local import LocalStorage
from tests.exporting.conftest import Export, Train
from worker.exporting.gguf_layout import Layout

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEXT = "Got it: 12 bikes.\nTicket: stock/normal"
# What verifies an export: llama.cpp itself where its package is installed.
LOADER = "llama.cpp" if find_spec("llama_cpp") else "transformers"


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> Tensor:
    found: Tensor = model.eval()(input_ids=torch.tensor([ids])).logits[0].float()
    return found


def plain(directory: Path | str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_a_model_in_gguf_computes_as_the_adapter_on_its_base(
    quantization: str, train: Train, export: Export, storage: LocalStorage
) -> None:
    trained = train()
    exported = export(trained, "gguf", quantization)
    assert exported.verification["method"] == LOADER
    assert exported.verification["is_within_limit"]
    names = [Path(path).name for path in exported.made.files]
    assert names == ["README.md", "SHA256SUMS", "manifest.json", "model-gguf.gguf"]
    path = exported.file(".gguf")

    tokenizer: Any = AutoTokenizer.from_pretrained(trained.base.directory)
    ids = tokenizer(TEXT).input_ids
    base = plain(trained.base.directory)
    untuned = logits_of(base, ids)
    adapter = storage.directory(trained.prefix)
    expected = logits_of(PeftModel.from_pretrained(base, str(adapter)), ids)
    found = logits_of(plain(path.parent, gguf_file=path.name), ids)
    share = {"f16": 0.01, "q8_0": 0.1}[quantization]
    assert float((found - expected).norm()) < share * float((untuned - expected).norm())

    read: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert read(TEXT).input_ids == ids
    assert read.chat_template == tokenizer.chat_template
    fields = gguf.GGUFReader(path)
    assert contents(fields, "tokenizer.ggml.pre") == "smollm"
    assert contents(fields, "tokenizer.ggml.eos_token_id") == 2
    kinds = contents(fields, "tokenizer.ggml.token_type")
    assert len(kinds) == 416
    assert kinds[1] == int(gguf.TokenType.CONTROL)
    assert kinds[-1] == int(gguf.TokenType.UNUSED)


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterSpec("lora", {"r": 4, "alpha": 8}),
        AdapterSpec("lora", {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "k_proj"]}),
        AdapterSpec("vera", {"r": 16}),
    ],
    ids=["lora", "rslora", "vera"],
)
def test_an_adapter_in_gguf_is_the_same_update(
    adapter: AdapterSpec, train: Train, export: Export, storage: LocalStorage
) -> None:
    trained = train(adapter)
    exported = export(trained, "gguf_adapter")
    assert exported.verification["method"] == ("gguf" if LOADER == "transformers" else LOADER)
    reader = gguf.GGUFReader(exported.file(".gguf"))
    assert contents(reader, "general.type") == "adapter"
    assert contents(reader, "adapter.type") == "lora"
    alpha = contents(reader, "adapter.lora.alpha")

    base = plain(trained.base.directory)
    directory = str(storage.directory(trained.prefix))
    tuned = PeftModel.from_pretrained(plain(trained.base.directory), directory)
    merged: Any = tuned.merge_and_unload()  # type: ignore[operator]
    layout = Layout(base.config)
    written = {tensor.name: tensor for tensor in reader.tensors}
    compared = 0
    for path, module in base.named_modules():
        if not isinstance(module, torch.nn.Linear) or path == "lm_head":
            continue
        name = layout.name_of(f"{path}.weight")
        update = (merged.get_submodule(path).weight - module.weight).detach().numpy()
        if f"{name}.lora_a" not in written:
            assert not update.any(), path
            continue
        a, b = (values(written[f"{name}.lora_{side}"]) for side in "ab")
        found = b @ a * (alpha / a.shape[0] if alpha else 1.0)
        # Undone by hand: rows of queries and keys stand in pairs.
        if path.endswith(("q_proj", "k_proj")):
            heads = 4 if path.endswith("q_proj") else 2
            half = found.shape[0] // heads // 2
            found = np.concatenate(
                [
                    found[head * 2 * half : (head + 1) * 2 * half][part::2]
                    for head in range(heads)
                    for part in (0, 1)
                ]
            )
        assert np.abs(found - update).max() < 1e-5, path
        compared += 1
    assert compared == len(written) // 2 > 0


def test_what_is_lost_on_the_way_is_found(train: Train, export: Export) -> None:
    """The negative control: rows of queries and keys in the wrong order are refused."""
    with pytest.raises(ExportFailed, match="does not compute what the model does"):
        export(train(), "gguf", "f32", implementation="tests.exporting.wrong_formats:Unordered")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "scaled positions"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"model_type": "mistral"}, "Llama family"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], told: str
) -> None:
    config: Any = LlamaConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ExportFailed, match=told):
        Layout(config)


def contents(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


def values(tensor: Any) -> Any:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
