"""How llama.cpp lays out models of the Llama family: names, number formats, the order of rows."""

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from app.domain.errors import ExportFailed

ARCHITECTURE = "llama"

_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (gguf.GGMLQuantizationType.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (gguf.GGMLQuantizationType.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
# As llama.cpp's own quantizer has it: errors in these tables are felt by every token.
_TABLES = ("token_embd.weight", "output.weight")
_COARSE = frozenset({"q5_1", "q5_0", "q4_1", "q4_0"})


class Layout:
    """The layout of one model.

    Raises:
        ExportFailed: it is of another family, or has what llama.cpp would compute otherwise.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        _check(config)
        self.config: Any = config
        architecture = gguf.MODEL_ARCH.LLAMA
        self._names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def name_of(self, path: str) -> str:
        """Return llama.cpp's name of a tensor of `transformers`. Raises: ExportFailed."""
        name: str | None = self._names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportFailed(f"llama.cpp has no name for the tensor {path}")
        return name

    def reordered(self, path: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Return [rows, numbers] in the order in which llama.cpp rotates queries and keys.

        It pairs neighbours, where `transformers` pairs the halves of a head.
        """
        heads = self._rotated_heads(path)
        if heads is None:
            return rows
        halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    def restored(self, path: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Undo `reordered`."""
        heads = self._rotated_heads(path)
        if heads is None:
            return rows
        pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def _rotated_heads(self, path: str) -> int | None:
        if ".q_proj" in path:
            return int(self.config.num_attention_heads)
        if ".k_proj" in path:
            return int(self.config.num_key_value_heads)
        return None


def file_type(quantization: str) -> int:
    return int(_TYPES[quantization][1])


def as_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array


def add_tensor(
    writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], quantization: str
) -> None:
    """Add a tensor in a number format; vectors, of which there are few, in float32."""
    if values.ndim == 1:
        quantization = "f32"
    elif name in _TABLES and quantization in _COARSE:
        quantization = "q8_0"
    kind = _TYPES[quantization][0]
    try:
        packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    except gguf.QuantError as error:
        raise ExportFailed(f"{name} cannot be stored as {quantization}: {error}") from error
    writer.add_tensor(name, packed, raw_dtype=kind)


def hyperparameters(config: Any) -> Mapping[str, Any]:
    """Return what llama.cpp has to know, by the name of the method that writes it."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return {
        "add_context_length": config.max_position_embeddings,
        "add_embedding_length": config.hidden_size,
        "add_block_count": config.num_hidden_layers,
        "add_feed_forward_length": config.intermediate_size,
        "add_head_count": config.num_attention_heads,
        "add_head_count_kv": config.num_key_value_heads,
        "add_key_length": head_width,
        "add_value_length": head_width,
        "add_rope_dimension_count": head_width,
        "add_rope_freq_base": float(rope.get("rope_theta", 10_000.0)),
        "add_layer_norm_rms_eps": config.rms_norm_eps,
        "add_vocab_size": config.vocab_size,
    }


def _check(config: Any) -> None:
    if config.model_type != "llama":
        raise ExportFailed(
            f"GGUF is written for models of the Llama family; this one is {config.model_type}"
        )
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) != "default":
        raise ExportFailed(f"GGUF is not written for models with scaled positions ({kind})")
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise ExportFailed(f"GGUF is not written for models with biases ({name})")
    if config.hidden_act != "silu":
        raise ExportFailed(f"llama.cpp computes silu in this family, not {config.hidden_act}")
