"""Layers of a model, as the headers of its files tell them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.base_models.architecture import Architecture, read_architecture


def test_layers_of_all_files_are_counted(tmp_path: Path) -> None:
    first = {"model.embed.weight": torch.zeros(2, 2), "model.layers.0.mlp.up.weight": torch.ones(1)}
    second = {
        "model.layers.10.mlp.up.weight": torch.zeros(3, 2),
        "model.layers.10.norm.weight": torch.zeros(3),
        "model.layers.10.mlp.up.bias": torch.zeros(3),
        "model.conv.weight": torch.zeros(1, 1, 3, 3),
        "model.places": torch.zeros(2, dtype=torch.int64),
    }
    for number, tensors in enumerate((first, second)):
        save_file(tensors, tmp_path / f"model-{number}.safetensors", metadata={"format": "pt"})
    found = read_architecture(tmp_path)
    assert found == Architecture(frozenset({"embed", "up", "conv"}), num_blocks=11)


@pytest.mark.parametrize("content", [None, b"", b"\x08" + bytes(7) + b"no json!"])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert read_architecture(tmp_path) is None
