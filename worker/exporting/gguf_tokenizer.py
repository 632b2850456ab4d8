"""A tokenizer as llama.cpp reads it: byte-level BPE with the splits that it knows by name."""

import json
from collections.abc import Mapping
from typing import Any

import gguf

from app.domain.errors import ExportFailed

# How texts are split before BPE, and what llama.cpp calls that.
_GPT2: Mapping[str, Any] = {"type": "ByteLevel", "use_regex": True}
_DIGITS: Mapping[str, Any] = {"type": "Digits", "individual_digits": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (_DIGITS, _GPT2),
    "llama-bpe": (
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "use_regex": False},
    ),
}


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocabulary_size: int) -> None:
    """Add a tokenizer with its chat template.

    Args:
        vocabulary_size: of the model, which may have more places than there are tokens.

    Raises:
        ExportFailed: llama.cpp has no tokenizer that would split texts like it.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or described["normalizer"]:
        raise ExportFailed(
            "GGUF is written for byte-level BPE tokenizers without a normalizer; this one is "
            f"{model['type']}"
        )
    tokens = {number: token for token, number in model["vocab"].items()}
    added = {one["id"]: one for one in described["added_tokens"]}
    tokens |= {number: one["content"] for number, one in added.items()}
    if max(tokens) >= vocabulary_size:
        raise ExportFailed("the tokenizer has more tokens than the model has places for")
    texts, kinds = [], []
    for number in range(vocabulary_size):
        texts.append(tokens.get(number, f"[PAD{number}]"))
        kinds.append(_kind(number in tokens, added.get(number)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_name(described["pre_tokenizer"]))
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    )
    _add_special_tokens(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def _kind(is_token: bool, added: Mapping[str, Any] | None) -> int:
    if not is_token:
        return int(gguf.TokenType.UNUSED)
    if added is None:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED)


def _add_special_tokens(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    # What stands at the start and the end of every text, found out by asking for one.
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)


def _split_name(pre_tokenizer: Mapping[str, Any] | None) -> str:
    parts = pre_tokenizer or {}
    steps = parts.get("pretokenizers", [parts] if parts else [])
    for name, split in _SPLITS.items():
        if (
            len(steps) == len(split)
            and all(
                step.get(key) == value
                for step, wanted in zip(steps, split, strict=True)
                for key, value in wanted.items()
            )
            and not any(step.get("add_prefix_space") for step in steps)
        ):
            return name
    raise ExportFailed(
        "llama.cpp has no name for how this tokenizer splits texts; known here: "
        + ", ".join(_SPLITS)
    )
