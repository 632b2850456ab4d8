"""Adapters that cannot be used are refused with a reason, however they are broken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.errors import InvalidInput
from app.domain.job_spec import LoraSpec
from tests.training.conftest import random_adapter
from worker.trunk.peft_format import CONFIG_NAME, WEIGHTS_NAME, load_adapter, save_adapter
from worker.trunk.trunk import Trunk

A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def directory(tiny_trunk: Trunk, tmp_path: Path) -> Path:
    save_adapter(tmp_path, random_adapter(tiny_trunk, LoraSpec(r=2, alpha=4), 1), "base")
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("peft_type", "IA3"),
        ("rank_pattern", {"q_proj": 4}),
    ],
)
def test_only_plain_lora_is_read(directory: Path, field: str, value: Any) -> None:
    path = directory / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(InvalidInput, match=f"only plain LoRA .* {field!r}"):
        load_adapter(directory)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_a_config_that_lacks_a_field_is_refused(directory: Path, field: str) -> None:
    path = directory / CONFIG_NAME
    config = json.loads(path.read_text())
    del config[field]
    path.write_text(json.dumps(config))

    with pytest.raises(InvalidInput):
        load_adapter(directory)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_missing_and_unreadable_files_are_refused(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"not what it was")
    with pytest.raises(InvalidInput, match=name):
        load_adapter(directory)

    (directory / name).unlink()
    with pytest.raises(InvalidInput, match=name):
        load_adapter(directory)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (A_KEY, None, "not plain LoRA|incomplete"),
        (A_KEY, torch.zeros(3, 32), "rank 2"),
        (A_KEY, torch.full((2, 32), float("nan")), "not finite"),
        ("base_model.model.lm_head.weight", torch.zeros(1), "not plain LoRA"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    directory: Path, key: str, value: torch.Tensor | None, why: str
) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    tensors.pop(key, None)
    if value is not None:
        tensors[key] = value
    save_file(tensors, directory / WEIGHTS_NAME)

    with pytest.raises(InvalidInput, match=why):
        load_adapter(directory)
