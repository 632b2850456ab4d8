"""Loading a base model from its files, and refusing what a trunk would compute wrongly."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.errors import InvalidInput
from worker.trunk.attention import ATTENTION_NAME, UnsupportedAttention
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.device import DeviceProfile
from worker.trunk.quicker import use_decoder
from worker.trunk.trunk import Trunk


def load_trunk(directory: Path, profile: DeviceProfile) -> Trunk:
    """Load a base model from a local directory in Hugging Face's layout.

    Only safetensors are read and no code from the directory is run.

    Raises:
        InvalidInput: the directory holds no such model, or one that needs its own code, is
            quantized, or computes something that packed batches cannot express.
    """
    _refuse_unsupported(directory)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **common)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=profile.dtype,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            **common,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"the base model cannot be loaded: {error}") from error
    trunk = Trunk(model.to(profile.device).eval().requires_grad_(False), tokenizer, directory)
    _check_packing(trunk)
    use_decoder(trunk)
    return trunk


def _refuse_unsupported(directory: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        try:
            config = msgspec.json.decode((directory / name).read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidInput(f"the base model has no readable {name}") from error
        if "auto_map" in config:
            raise InvalidInput("the base model needs code of its own, which is never run")
        if "quantization_config" in config:
            raise InvalidInput("the base model is quantized; convert it to plain safetensors")
    if not (directory / "tokenizer.json").exists():
        raise InvalidInput("the base model has no tokenizer.json")


def _check_packing(trunk: Trunk) -> None:
    """Compare a packed batch with transformers' own forward pass of one of its sequences.

    It catches whatever this trunk does not know of: layers that look across segments, scaled or
    soft-capped logits, a bias in the output layer.
    """
    ids = [index % trunk.model.config.vocab_size for index in range(3, 11)]
    try:
        with torch.no_grad():
            batch = pack([SequenceRows(ids[:3]), SequenceRows(ids)], trunk.device)
            packed = trunk.logits(trunk.hidden(batch)[3:])
            alone = pack([SequenceRows(ids)], trunk.device)
            expected = (
                trunk.model(
                    input_ids=alone.input_ids[None], use_cache=False, segments=alone.segments
                )
                .logits[0]
                .float()
            )
    except (UnsupportedAttention, TypeError) as error:
        raise InvalidInput(f"this kind of base model is not supported: {error}") from error
    if (packed - expected).norm() > 0.02 * expected.norm():
        raise InvalidInput("this kind of base model is not supported: it cannot be packed")
