"""Texts longer than a model's input, as windows that overlap: nothing of them is lost.

An example stays one record or one input, whatever its number of windows: it is drawn, judged and
answered as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.domain.errors import InvalidInput
from worker.tasks.loading import padded

# Of more tokens than these, padding included, the activations are not kept for the backward pass
# but computed again, so that the memory of a pass does not grow with the length of a text. Passes
# of several examples are smaller by far.
TOKENS_AT_A_TIME = 16_384

OWNERS = "owners"


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text as it goes into a model.

    Attributes:
        inputs: `input_ids`, and `token_type_ids` where the model knows them: one a token.
        offsets: the characters that each token stands for, without white space around them; an
            empty range for what is no part of the text.
        words: number of the word that each token belongs to; None for special tokens.
        text: places of all tokens of the text.
        own: places of the tokens that are taken from this window and from no other.
    """

    inputs: Mapping[str, list[int]]
    offsets: Sequence[tuple[int, int]]
    words: Sequence[int | None]
    text: range
    own: range

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


def windows_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    longest: int,
    overlap: int,
    before: str | None = None,
) -> list[Window]:
    """Return a text in windows, in order; each token of it is the own of one window.

    Args:
        longest: tokens in a window.
        overlap: tokens of the text that a window shares with the next one. A token is taken from
            the window in which it has the more context on its scarcer side.
        before: a text that stands before the window in every pass, such as a question.

    Raises:
        InvalidInput: the tokenizer cannot tell where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise InvalidInput("the base model's tokenizer does not know where its tokens stand")
    pair = (text,) if before is None else (before, text)
    encoding = tokenizer(
        *pair,
        truncation=True if before is None else "only_second",
        max_length=longest,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    number = len(pair) - 1
    names = [name for name in ("input_ids", "token_type_ids") if name in encoding]
    windows: list[Window] = []
    for row in range(len(encoding["input_ids"])):
        places = [at for at, one in enumerate(encoding.sequence_ids(row)) if one == number]
        start, stop = (places[0], places[-1] + 1) if places else (0, 0)
        # The middle of what two windows share is where one's context outgrows the other's.
        is_last = row == len(encoding["input_ids"]) - 1
        first = start + (overlap - overlap // 2 if row else 0)
        windows.append(
            Window(
                inputs={name: encoding[name][row] for name in names},
                offsets=[
                    _trimmed(text, *offset) if start <= at < stop else (0, 0)
                    for at, offset in enumerate(encoding["offset_mapping"][row])
                ],
                words=encoding.word_ids(row),
                text=range(start, stop),
                own=range(first, stop if is_last else stop - overlap // 2),
            )
        )
    return windows


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a model takes."""
    limit = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    # RoBERTa and its kin count positions from beyond that of padding.
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    if padding is not None:
        limit -= padding + 1
    return min(limit, int(tokenizer.model_max_length))


def collate_windows(
    windows: Sequence[Sequence[Window]], pad_token_id: int | None
) -> dict[str, Tensor]:
    """Return what a model takes: a row for each window of each example, and whose it is.

    Returns:
        `input_ids`, `attention_mask` and perhaps `token_type_ids` [windows, tokens] int64, and
        `owners` [windows] int64: the example that each belongs to.
    """
    rows = [window for each in windows for window in each]
    batch = {
        name: padded(
            [row.inputs[name] for row in rows], (pad_token_id or 0) * (name == "input_ids")
        )
        for name in rows[0].inputs
    }
    batch["attention_mask"] = padded([[1] * len(row) for row in rows], 0)
    owners = [number for number, each in enumerate(windows) for _ in each]
    return batch | {OWNERS: torch.tensor(owners)}


def outputs_of(model: nn.Module, batch: Mapping[str, Tensor], *names: str) -> tuple[Tensor, ...]:
    """Return named outputs for all windows of a batch, each [windows, tokens, …] float32.

    What a learnt prompt adds before the tokens is left out.
    """
    inputs = {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in batch
    }
    num_windows, num_tokens = inputs["input_ids"].shape

    def run(part: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        found: Any = model(**part)
        return tuple(found[name][:, -num_tokens:].float() for name in names)

    if num_windows * num_tokens <= TOKENS_AT_A_TIME:
        return run(inputs)
    parts = []
    at_a_time = max(1, TOKENS_AT_A_TIME // num_tokens)
    for start in range(0, num_windows, at_a_time):
        part = {name: each[start : start + at_a_time] for name, each in inputs.items()}
        parts.append(checkpoint(run, part, use_reentrant=False))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def sums_by_owner(values: Tensor, owners: Tensor) -> Tensor:
    """Return the sums over each example's windows [examples] of a value a window [windows]."""
    sums = torch.zeros(int(owners[-1]) + 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, owners, values)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range of a token without the white space that some tokenizers count to it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
