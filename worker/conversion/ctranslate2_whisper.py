"""Whisper in CTranslate2's format becomes a directory of transformers.

A model.bin holds tensors and no code: a name, a shape, a number format and the bytes of each. The
layers are Whisper's own, under other names and with the projections of one input fused into one.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from app.domain.errors import InvalidInput
from worker.conversion.fetched import only_file

_VERSION = 6  # Of the file format.
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_LONGEST_TRANSCRIPT_TOKENS = 448

_NORM = {"gamma": "weight", "beta": "bias"}
# Their modules of a layer and ours; a fused projection has several of ours, in this order.
_IN_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_AROUND_LAYERS = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}


@dataclass(frozen=True, slots=True)
class _SpecialTokens:
    """The ids of the tokens that steer Whisper."""

    end: int
    start: int
    translate: int
    transcribe: int
    previous: int
    no_timestamps: int
    languages: Mapping[str, int]


def convert(fetched: Path, into: Path) -> None:
    """Write `model.bin` (or `model.bin.part1`, …) as safetensors. See the package.

    The directory also holds CTranslate2's `config.json` and the model's `tokenizer.json`.
    """
    tensors = dict(_tensors(_content(fetched)))
    tokenizer = _tokenizer(fetched)
    special = _special_tokens(tokenizer)
    model = WhisperForConditionalGeneration(_config(tensors, special))
    weights = _renamed(tensors)
    # The output layer is the embedding.
    model.load_state_dict(
        weights | {"proj_out.weight": weights["model.decoder.embed_tokens.weight"]}
    )
    model.to(tensors["decoder/embeddings/weight"].dtype)  # type: ignore[arg-type]
    settings = json.loads(only_file(fetched, "config.json").read_text())
    model.generation_config = _generation_config(settings, special)
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    extractor = WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=model.config.num_mel_bins
    )
    extractor.save_pretrained(into)


def _content(fetched: Path) -> memoryview:
    parts = sorted(fetched.glob("model.bin*"))
    if not parts:
        raise InvalidInput("expected model.bin, found none")
    return memoryview(b"".join(part.read_bytes() for part in parts))


def _tensors(content: memoryview) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors of a model.bin, whose numbers are little-endian."""
    position = 0

    def read(number_format: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{number_format}", content, position)
        position += struct.calcsize(number_format)
        return int(value)

    def read_bytes(length: int) -> bytes:
        nonlocal position
        position += length
        return bytes(content[position - length : position])

    def read_text() -> str:
        return read_bytes(read("H")).rstrip(b"\0").decode()

    version = read("I")
    spec, _ = read_text(), read("I")
    if version != _VERSION or spec != "WhisperSpec":
        raise InvalidInput(f"model.bin holds {spec!r} in version {version} of the format")
    for _ in range(read("I")):
        name = read_text()
        shape = [read("I") for _ in range(read("B"))]
        dtype = _DTYPES[read("B")]
        values = bytearray(read_bytes(read("I")))
        yield name, torch.frombuffer(values, dtype=dtype).reshape(shape)
    # Then come aliases: names for what is shared, which transformers ties by itself.


def _renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        stack, *path, kind = name.split("/")
        if not path or not value.dim():
            continue  # A setting.
        if path[0].startswith("layer_") and path[0] != "layer_norm":
            targets = _IN_LAYER["/".join(path[1:])]
            prefix = f"model.{stack}.layers.{path[0].removeprefix('layer_')}"
        else:
            targets = (_AROUND_LAYERS[path[0]],)
            prefix = f"model.{stack}"
        kind = "weight" if kind == "encodings" else _NORM.get(kind, kind)
        for target, part in zip(targets, value.chunk(len(targets)), strict=True):
            # Whisper's keys have no bias. Fused with the others it is there, and 0.
            if not (kind == "bias" and target.endswith("k_proj")):
                renamed[f"{prefix}.{target}.{kind}"] = part.clone()
    return renamed


def _config(tensors: Mapping[str, torch.Tensor], special: _SpecialTokens) -> WhisperConfig:
    vocabulary_size, width = tensors["decoder/embeddings/weight"].shape
    stacks: dict[str, Any] = {}
    for stack in ("encoder", "decoder"):
        layers = [name for name in tensors if name.startswith(f"{stack}/layer_")]
        numbers = {name.split("/")[1] for name in layers} - {"layer_norm"}
        stacks[f"{stack}_layers"] = len(numbers)
        stacks[f"{stack}_attention_heads"] = int(tensors[f"{stack}/num_heads"])
        stacks[f"{stack}_ffn_dim"] = len(tensors[f"{stack}/layer_0/ffn/linear_0/bias"])
    return WhisperConfig(
        **stacks,
        vocab_size=vocabulary_size,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        decoder_start_token_id=special.start,
        bos_token_id=special.end,
        eos_token_id=special.end,
        pad_token_id=special.end,
        begin_suppress_tokens=None,
    )


def _tokenizer(fetched: Path) -> WhisperTokenizer:
    added = json.loads(only_file(fetched, "tokenizer.json").read_text())["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    tokenizer: WhisperTokenizer = WhisperTokenizer.from_pretrained(
        fetched, pad_token="<|endoftext|>", extra_special_tokens=special
    )
    return tokenizer


def _special_tokens(tokenizer: WhisperTokenizer) -> _SpecialTokens:
    ids = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    first, last = ids["<|startoftranscript|>"], ids["<|translate|>"]
    return _SpecialTokens(
        end=ids["<|endoftext|>"],
        start=first,
        translate=last,
        transcribe=ids["<|transcribe|>"],
        previous=ids["<|startofprev|>"],
        no_timestamps=ids["<|notimestamps|>"],
        languages={token: number for token, number in ids.items() if first < number < last},
    )


def _generation_config(settings: Mapping[str, Any], special: _SpecialTokens) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        decoder_start_token_id=special.start,
        bos_token_id=special.end,
        eos_token_id=special.end,
        pad_token_id=special.end,
        max_length=_LONGEST_TRANSCRIPT_TOKENS,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        lang_to_id=dict(special.languages),
        task_to_id={"transcribe": special.transcribe, "translate": special.translate},
        task="transcribe",
        no_timestamps_token_id=special.no_timestamps,
        prev_sot_token_id=special.previous,
        is_multilingual=True,
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
