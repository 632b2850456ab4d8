"""Formats that make something else than they should: what must never be published."""

from pathlib import Path

import numpy as np
import torch

from worker.exporting.format import ReadBack
from worker.exporting.gguf_layout import Layout
from worker.exporting.gguf_model import GGUFFormat, gguf_path, write_model
from worker.exporting.merged import MergedFormat
from worker.exporting.model import ExportedModel
from worker.exporting.text_model import TextModel


class WithoutUpdate(MergedFormat):
    """Writes the base model as if it were the tuned one."""

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        model.untuned().save_pretrained(into)
        model.save_preparation(into)


class HalfAnUpdate(MergedFormat):
    """Merges half of the update into one layer of all."""

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        merged, base = model.merged(), model.untuned()
        name = "model.layers.0.mlp.down_proj"
        right, plain = merged.get_submodule(name).weight, base.get_submodule(name).weight
        right.copy_((right + plain) / 2)
        merged.save_pretrained(into)
        model.save_preparation(into)


class Broken(MergedFormat):
    """Leaves a file that nobody can load."""

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        super().write(model, quantization, into)
        path = into / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])


class Silent(MergedFormat):
    """Computes nothing when it is read back."""

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        return ReadBack("nothing", [])


class Unordered(GGUFFormat):
    """Leaves queries and keys in the order of `transformers`."""

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        assert isinstance(model, TextModel)
        merged = model.merged()
        layout = Layout(merged.config)
        for name, weight in merged.named_parameters():
            undone = layout.restored(name, weight.detach().numpy())
            weight.copy_(torch.from_numpy(np.ascontiguousarray(undone)))
        write_model(gguf_path(into), merged, model.tokenizer, quantization)
