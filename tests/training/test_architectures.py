"""Other architectures than the demo's: packed alike or refused, never computed wrongly."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.base_models import InstalledBaseModel
from app.domain.errors import InvalidInput
from tests.training.conftest import CPU, TOKENIZER_FILES, random_sequences
from worker.serving.base import ServedBase
from worker.serving.loop import LoopLimits
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.half import is_available
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_half

COMMON: dict[str, Any] = {
    "vocab_size": 40_000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 6
HAVE_DECODER = ("llama", "qwen2", "qwen3", "mistral")

Build = Callable[..., Path]


@pytest.fixture
def build(base_model_dir: Path, tmp_path: Path) -> Build:
    """Write a random model of an architecture, with the real tokenizer."""

    def write(model_type: str, **config: Any) -> Path:
        torch.manual_seed(0)
        chosen = AutoConfig.for_model(model_type, **(COMMON | config))
        model: Any = AutoModelForCausalLM.from_config(chosen)  # type: ignore[no-untyped-call]
        # As models are published.
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        for name in TOKENIZER_FILES:
            shutil.copyfile(base_model_dir / name, tmp_path / name)
        return tmp_path

    return write


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {"attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": WINDOW}),
        ("phi3", {"sliding_window": WINDOW}),
        (
            "gemma3_text",
            {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        ),
    ],
)
def test_packed_and_cached_rows_equal_transformers_own(
    build: Build, model_type: str, config: dict[str, Any], bits: int
) -> None:
    directory = build(model_type, **config)
    trunk = load_trunk(directory, CPU)
    assert (trunk.decoder is not None) == (model_type in HAVE_DECODER)
    if bits == 16:
        assert use_half(trunk) == (model_type in HAVE_DECODER and is_available())
    reference: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    sequences = random_sequences(11, 3, 17)
    caches = [trunk.new_cache() for _ in sequences]
    with torch.no_grad():
        expected = [
            reference.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            for ids in sequences
        ]
        whole = trunk.hidden(pack([SequenceRows(ids) for ids in sequences]))
        for ids, cache in zip(sequences, caches, strict=True):
            trunk.hidden(pack([SequenceRows(ids[:-2], None, cache)]))
        rest = pack([SequenceRows(i[-2:], None, c) for i, c in zip(sequences, caches, strict=True)])
        ends = trunk.hidden(rest)

    torch.testing.assert_close(whole, torch.cat(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        ends, torch.cat([rows[-2:] for rows in expected]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("model_type", "kind", "longest"),
    [
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, 8),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
            },
            6,
        ),
        ("llama", {"rope_type": "linear", "factor": 2.0}, 100),
    ],
)
def test_no_sequence_is_so_long_that_it_turns_its_mates_differently(
    build: Build, model_type: str, kind: dict[str, Any], longest: int
) -> None:
    rope = {"rope_theta": 10_000.0, **kind}
    directory = build(
        model_type,
        max_position_embeddings=8,
        original_max_position_embeddings=6,
        rope_parameters=rope,
    )
    trunk = load_trunk(directory, CPU)
    files = InstalledBaseModel("base", "name", directory, "revision", 100)

    async def served_context() -> int:
        base = ServedBase(files, trunk, LoopLimits(), asyncio.get_running_loop())
        base.close()
        return base.context_length

    def is_alike_beside(length: int) -> bool:
        mate, ids = random_sequences(length, 4)
        with torch.no_grad():
            alone = trunk.hidden(pack([SequenceRows(ids)]))
            mixed = trunk.hidden(pack([SequenceRows(mate), SequenceRows(ids)]))
        return torch.allclose(mixed[length:], alone, atol=1e-5)

    assert asyncio.run(served_context()) == longest
    assert is_alike_beside(longest)
    assert is_alike_beside(longest + 1) == (kind["rope_type"] == "linear")


@pytest.mark.parametrize(
    ("model_type", "config", "why"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0}, "soft-capped"),
        ("granite", {"logits_scaling": 8.0}, "cannot be packed"),
        ("mamba", {"state_size": 4}, "not supported"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    build: Build, model_type: str, config: dict[str, Any], why: str
) -> None:
    directory = build(model_type, **config)

    with pytest.raises(InvalidInput, match=why):
        load_trunk(directory, CPU)


@pytest.mark.parametrize(
    ("file", "field", "value", "why"),
    [
        ("config.json", "auto_map", {"AutoModelForCausalLM": "evil.Model"}, "code of its own"),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil", None]}, "code of its own"),
        ("config.json", "quantization_config", {"bits": 4}, "quantized"),
    ],
)
def test_remote_code_and_quantized_weights_are_refused(
    build: Build, file: str, field: str, value: Any, why: str
) -> None:
    path = build("llama") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(InvalidInput, match=why):
        load_trunk(path.parent, CPU)


def test_pickled_weights_are_never_read(build: Build) -> None:
    directory = build("llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")

    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_trunk(directory, CPU)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_incomplete_directory_is_refused(build: Build, name: str) -> None:
    directory = build("llama")
    (directory / name).unlink()

    with pytest.raises(InvalidInput, match=name):
        load_trunk(directory, CPU)
