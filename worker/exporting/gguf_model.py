"""A whole model in GGUF, for llama.cpp and what is built on it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedModel

from app.domain.registry import resolve
from worker.exporting.format import ReadBack
from worker.exporting.gguf_layout import (
    ARCHITECTURE,
    Layout,
    add_tensor,
    as_numpy,
    file_type,
    hyperparameters,
)
from worker.exporting.gguf_tokenizer import add_tokenizer
from worker.exporting.model import ExportedModel, frozen
from worker.exporting.text_model import TextModel

LLAMA_CPP = "worker.exporting.llama_cpp:model_outputs"


class GGUFFormat:
    """See `Format`."""

    packing = "files"

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        assert isinstance(model, TextModel)
        write_model(gguf_path(into), model.merged(), model.tokenizer, quantization)

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        assert isinstance(model, TextModel)
        path = gguf_path(directory)
        if has_llama_cpp():
            return ReadBack("llama.cpp", resolve(LLAMA_CPP)(path, None, model.sequences))
        loaded = model.load_plain(directory, gguf_file=path.name)
        return ReadBack("transformers", model.outputs(frozen(loaded)))

    def usage(self, name: str) -> str:
        return f"""\
```sh
llama-cli --model {name}.gguf --conversation
```

Its chat template is in the file.
"""


def gguf_path(directory: Path) -> Path:
    """Return where the file of an export lies: it is called as its directory."""
    return directory / f"{directory.name}.gguf"


def has_llama_cpp() -> bool:
    """Say whether llama.cpp's own code can load what was written."""
    return find_spec("llama_cpp") is not None


def write_model(path: Path, model: PreTrainedModel, tokenizer: Any, quantization: str) -> None:
    """Write a model of the Llama family. Raises: ExportFailed."""
    layout = Layout(model.config)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        for method, value in hyperparameters(model.config).items():
            getattr(writer, method)(value)
        writer.add_file_type(file_type(quantization))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
        is_tied = model.config.tie_word_embeddings
        for name, tensor in model.state_dict().items():
            if name.endswith("rotary_emb.inv_freq") or (is_tied and name == "lm_head.weight"):
                continue
            values = layout.reordered(name, as_numpy(tensor))
            add_tensor(writer, layout.name_of(name), values, quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
