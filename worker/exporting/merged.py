"""A whole model in the layout of `transformers`, the update merged into its weights."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig, PreTrainedModel

from app.domain.errors import ExportFailed
from worker.exporting.format import ReadBack
from worker.exporting.model import ExportedModel, frozen

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
}


class MergedFormat:
    """See `Format`."""

    packing = "tar"  # Weights hardly compress.

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        merged: Any = model.merged()
        if quantization in _SETTINGS:
            _save_quantized(merged, quantization, into)
        else:
            merged.to(getattr(torch, quantization))
            merged.config.dtype = getattr(torch, quantization)
            merged.save_pretrained(into)
        model.save_preparation(into)
        for path in into.glob("*.safetensors"):
            path.chmod(0o644)  # Written for its owner alone.

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        return ReadBack("transformers", model.outputs(_load(directory)))

    def usage(self, name: str) -> str:
        return f"""\
```sh
tar xf {name}.tar
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # or the class in config.json
model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""


def _save_quantized(merged: Any, quantization: str, into: Path) -> None:
    """Write a model with its linear layers in 8 or 4 bits, as bitsandbytes has them.

    Raises:
        ExportFailed: bitsandbytes is not installed, or takes no such model.
    """
    if find_spec("bitsandbytes") is None:
        raise ExportFailed(
            f"{quantization!r} needs bitsandbytes on the worker: pip install "
            "'tunesmith[ml,quantization]'",
            code="not_installed",
        )
    with TemporaryDirectory(dir=into.parent) as plain:
        merged.save_pretrained(plain)
        try:
            # Quantized while it is loaded, by the code that will load it elsewhere.
            quantized: Any = type(merged).from_pretrained(
                plain,
                dtype=torch.float32,
                device_map="cpu",
                local_files_only=True,
                quantization_config=BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                    **_SETTINGS[quantization]
                ),
            )
        except (ValueError, RuntimeError) as error:
            raise ExportFailed(f"{quantization!r} does not take this model: {error}") from error
    quantized.save_pretrained(into)


def _load(directory: Path) -> PreTrainedModel:
    """Load by plain `transformers`: the class that the configuration names, and nothing of ours."""
    config = json.loads((directory / "config.json").read_text())
    auto_class: Any = getattr(transformers, config["architectures"][0])
    # Computed in float32 whatever the weights are stored in.
    loaded: PreTrainedModel = auto_class.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return frozen(loaded)
