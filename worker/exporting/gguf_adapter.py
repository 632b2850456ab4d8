"""A LoRA adapter in GGUF, which llama.cpp loads beside the base model's own GGUF."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.domain.errors import ExportFailed
from app.domain.registry import resolve
from worker.exporting.format import ReadBack
from worker.exporting.gguf_layout import ARCHITECTURE, Layout, add_tensor, as_numpy
from worker.exporting.gguf_model import LLAMA_CPP, gguf_path, has_llama_cpp, write_model
from worker.exporting.model import ExportedModel
from worker.exporting.text_model import TextModel
from worker.serving.served_adapters import read_mixed
from worker.trunk.lora import LoraAdapter

_BASE_NAME = "base.gguf"


class GGUFAdapterFormat:
    """See `Format`."""

    packing = "files"

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        base: Any = model.untuned()
        layout = Layout(base.config)
        adapter = read_mixed(model.adapter, lambda path: _linear(base, path).in_features)
        if not isinstance(adapter, LoraAdapter):
            raise ExportFailed("the adapter is no low-rank update")
        ranks = {pair.a.shape[0] for pair in adapter.weights.values()}
        writer = gguf.GGUFWriter(gguf_path(into), ARCHITECTURE)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            # llama.cpp scales each update by alpha over its own rank. Ours may have several, so
            # that the scale is in B, and alpha is the rank where there is only one.
            is_one = len(ranks) == 1
            alpha = float(ranks.pop()) * adapter.scaling if is_one else 0.0
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            for path, pair in adapter.weights.items():
                name = layout.name_of(f"{path}.weight")
                # An alpha of 0 means for llama.cpp that nothing is scaled.
                b = as_numpy(pair.b) * (1.0 if is_one else adapter.scaling)
                b = layout.reordered(path, b)
                add_tensor(writer, f"{name}.lora_a", as_numpy(pair.a), quantization)
                add_tensor(writer, f"{name}.lora_b", b, quantization)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        assert isinstance(model, TextModel)
        if has_llama_cpp():
            return ReadBack("llama.cpp", _by_llama_cpp(model, directory))
        return ReadBack("gguf", model.outputs(_applied(model, gguf_path(directory))))

    def usage(self, name: str) -> str:
        return f"""\
```sh
llama-cli --model <the base model>.gguf --lora {name}.gguf --conversation
```

The base model must be the one below, converted by llama.cpp's `convert_hf_to_gguf.py`.
"""


def _by_llama_cpp(model: TextModel, directory: Path) -> Iterator[Tensor]:
    base = directory.parent / _BASE_NAME
    write_model(base, model.untuned(), model.tokenizer, "f32")
    try:
        yield from resolve(LLAMA_CPP)(base, gguf_path(directory), model.sequences)
    finally:
        base.unlink()


def _applied(model: TextModel, path: Path) -> nn.Module:
    """Return the base model with the update of the file added, as llama.cpp adds it."""
    base: Any = model.untuned()
    layout = Layout(base.config)
    reader = gguf.GGUFReader(path)
    field = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    assert field is not None
    alpha = float(field.contents())
    tensors = {tensor.name: _values(tensor) for tensor in reader.tensors}
    linear = {
        layout.name_of(f"{name}.weight"): (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear)
    }
    for name in tensors:
        if not name.endswith(".lora_a"):
            continue
        path_of, module = linear[name.removesuffix(".lora_a")]
        a, b = tensors[name], tensors[name.removesuffix("_a") + "_b"]
        scale = alpha / a.shape[0] if alpha else 1.0
        update = layout.restored(path_of, (b @ a) * scale)
        module.weight.add_(torch.from_numpy(np.ascontiguousarray(update)))
    plain: nn.Module = base
    return plain


def _values(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.astype(np.float32)


def _linear(model: Any, path: str) -> Any:
    return model.get_submodule(path)
