"""Adapters as `peft` saves them, made without torch, and zips of them."""

import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TASK = "task.json"
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

LORA_CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": BASE_NAME,
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "bias": "none",
    "init_lora_weights": True,
    "inference_mode": True,
}
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
LORA_SHAPES: Mapping[str, Sequence[int]] = {
    f"{Q_PROJ}.lora_A.weight": (2, 576),
    f"{Q_PROJ}.lora_B.weight": (576, 2),
}


def safetensors(
    shapes: Mapping[str, Sequence[int]] = LORA_SHAPES, changes: Mapping[str, Any] | None = None
) -> bytes:
    """Return a file of zeros in float32.

    Args:
        changes: entries of the header to replace; a length of content follows from the shapes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header | dict(changes or {})).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def adapter_files(
    config: Mapping[str, Any] | None = None, weights: bytes | None = None
) -> dict[str, bytes]:
    """Return the files of a LoRA adapter.

    Args:
        config: settings beside the usual ones.
    """
    return {
        CONFIG: json.dumps({**LORA_CONFIG, **(config or {})}).encode(),
        WEIGHTS: safetensors() if weights is None else weights,
    }


def zipped(files: Mapping[str, bytes], folder: str = "") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as written:
        for name, file in files.items():
            written.writestr(folder + name, file)
    return content.getvalue()
