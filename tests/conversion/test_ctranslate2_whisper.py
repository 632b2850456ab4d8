"""A small Whisper, written here in CTranslate2's format, comes back the same."""

import json
import struct
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from app.domain.errors import InvalidInput
from worker.conversion import ctranslate2_whisper

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|sv|>", "<|translate|>"]
SPECIAL += ["<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
START = len(LETTERS) + SPECIAL.index("<|startoftranscript|>")
FLOAT32, INT16 = 0, 2


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(1)
    end = len(LETTERS)
    config = WhisperConfig(
        vocab_size=len(LETTERS) + len(SPECIAL),
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=40,
        num_mel_bins=80,
        max_source_positions=1_500,
        max_target_positions=12,
        decoder_start_token_id=START,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # Biases and norms too, which start as 0 and 1.
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def fetched(whisper: WhisperForConditionalGeneration, tmp_path: Path) -> Path:
    directory = tmp_path / "fetched"
    directory.mkdir()
    content = model_bin(whisper)
    (directory / "model.bin.part1").write_bytes(content[:1_000])
    (directory / "model.bin.part2").write_bytes(content[1_000:])
    settings = {"alignment_heads": [[0, 1]], "suppress_ids": [1, 2], "suppress_ids_begin": [3]}
    (directory / "config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(models.BPE({one: number for number, one in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "into"
    directory.mkdir()
    return directory


def test_the_model_comes_back_the_same(
    whisper: WhisperForConditionalGeneration, fetched: Path, into: Path
) -> None:
    ctranslate2_whisper.convert(fetched, into)
    model, report = AutoModelForSpeechSeq2Seq.from_pretrained(into, output_loading_info=True)
    assert not any(report.values())
    features = torch.randn(1, 80, 3_000)
    tokens = torch.tensor([[START, 5, 6]])
    with torch.no_grad():
        expected = whisper(input_features=features, decoder_input_ids=tokens).logits
        logits = model.eval()(input_features=features, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits, expected)


def test_what_steers_it_is_written_down(fetched: Path, into: Path) -> None:
    ctranslate2_whisper.convert(fetched, into)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(into)
    tokenizer = AutoProcessor.from_pretrained(into).tokenizer
    settings = model.generation_config
    languages = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|en|>", "<|sv|>")}
    assert settings.lang_to_id == languages
    assert settings.decoder_start_token_id == START
    assert settings.suppress_tokens == [1, 2]
    ids = tokenizer("hej!").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hej!"


def test_another_format_is_refused(fetched: Path, into: Path) -> None:
    for part in fetched.glob("model.bin*"):
        part.unlink()
    (fetched / "model.bin").write_bytes(struct.pack("<IH", 5, 12) + b"WhisperSpec\0" + bytes(8))
    with pytest.raises(InvalidInput, match="'WhisperSpec' in version 5"):
        ctranslate2_whisper.convert(fetched, into)


def model_bin(model: WhisperForConditionalGeneration) -> bytes:
    """Write a model as CTranslate2's converter does: fused projections, other names."""
    tensors: dict[str, torch.Tensor] = {}
    weights = model.state_dict()

    def put(name: str, *ours: str, is_norm: bool = False) -> None:
        for kind in ("weight", "bias"):
            parts = []
            for one in ours:
                found = weights.get(f"model.{one}.{kind}")
                if found is None and one.endswith("k_proj"):
                    found = torch.zeros(model.config.d_model)
                if found is not None:
                    parts.append(found)
            if parts:
                theirs = {"weight": "gamma", "bias": "beta"}[kind] if is_norm else kind
                tensors[f"{name}/{theirs}"] = torch.cat(parts)

    for stack, config in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
        positions = weights[f"model.{stack}.embed_positions.weight"]
        tensors[f"{stack}/position_encodings/encodings"] = positions
        put(f"{stack}/layer_norm", f"{stack}.layer_norm", is_norm=True)
        for number in range(len(config.layers)):
            theirs, ours = f"{stack}/layer_{number}", f"{stack}.layers.{number}"
            attention = f"{theirs}/self_attention"
            put(f"{attention}/layer_norm", f"{ours}.self_attn_layer_norm", is_norm=True)
            put(f"{attention}/linear_0", *(f"{ours}.self_attn.{one}_proj" for one in "qkv"))
            put(f"{attention}/linear_1", f"{ours}.self_attn.out_proj")
            put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", is_norm=True)
            put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if stack == "decoder":
                cross = f"{theirs}/attention"
                put(f"{cross}/layer_norm", f"{ours}.encoder_attn_layer_norm", is_norm=True)
                put(f"{cross}/linear_0", f"{ours}.encoder_attn.q_proj")
                put(f"{cross}/linear_1", *(f"{ours}.encoder_attn.{one}_proj" for one in "kv"))
                put(f"{cross}/linear_2", f"{ours}.encoder_attn.out_proj")
    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    put("decoder/embeddings", "decoder.embed_tokens")
    for stack in ("encoder", "decoder"):
        heads = getattr(model.config, f"{stack}_attention_heads")
        tensors[f"{stack}/num_heads"] = torch.tensor(heads, dtype=torch.int16)

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        values = tensor.numpy().tobytes()
        dtype = INT16 if tensor.dtype == torch.int16 else FLOAT32
        content += text(name) + struct.pack("<B", tensor.dim())
        content += struct.pack(f"<{tensor.dim()}I", *tensor.shape)
        content += struct.pack("<BI", dtype, len(values)) + values
    alias = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return content + struct.pack("<I", 1) + alias
