"""A dataset as tokens: encoded once, held compactly, with what was cut or left out counted."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from app.domain.datasets import Record, read_records
from app.domain.errors import InvalidInput, TrainingFailed
from worker.trunk.chat import EncodedRecord

LINES_TOLD = 20


@dataclass(frozen=True, slots=True)
class LineTally:
    """How many lines of a file something is true of, and the first of them."""

    first: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class EncodedDataset:
    """All trainable records of a dataset, one after another.

    Attributes:
        token_ids: [tokens] int32.
        loss_weights: [tokens] uint8, 1 for a token that is learnt.
        offsets: where each record starts, and the end of the last: records + 1 numbers.
        trainable_tokens: tokens that carry loss.
        truncated: records that were cut to the maximal length.
        untrainable: records left out, because no token of theirs would carry loss.
    """

    token_ids: Tensor
    loss_weights: Tensor
    offsets: "array[int]"
    trainable_tokens: int
    truncated: LineTally
    untrainable: LineTally

    @property
    def num_records(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    def length(self, record: int) -> int:
        """Return the number of a record's tokens."""
        return self.offsets[record + 1] - self.offsets[record]

    def tokens(self, record: int) -> tuple[Tensor, Tensor]:
        """Return a record's token ids [tokens] int32 and loss weights [tokens] uint8, as views."""
        rows = slice(self.offsets[record], self.offsets[record + 1])
        return self.token_ids[rows], self.loss_weights[rows]


def encode_dataset(
    stream: BinaryIO, encode: Callable[[Record], EncodedRecord], param: str
) -> EncodedDataset:
    """Read and encode a dataset.

    Args:
        stream: JSON lines.
        encode: a method's encoding of one record.
        param: what the dataset is called in messages: `training_file`.

    Raises:
        TrainingFailed: a record cannot be encoded, or none has a token that carries loss.
    """
    token_ids, loss_weights, offsets = array("i"), array("B"), array("q", [0])
    truncated, untrainable = array("q"), array("q")
    trainable_tokens = 0
    line = 0
    try:
        for line, record in read_records(stream):
            encoded = encode(record)
            if encoded.truncated:
                truncated.append(line)
            if encoded.trainable_tokens == 0:
                untrainable.append(line)
                continue
            trainable_tokens += encoded.trainable_tokens
            token_ids.extend(encoded.input_ids)
            loss_weights.extend(encoded.loss_weights)
            offsets.append(len(token_ids))
    except InvalidInput as error:
        where = "" if error.message.startswith("line ") else f"line {line}: "
        raise _invalid(where + error.message, param) from error
    if len(offsets) == 1:
        raise _invalid(_nothing_to_learn(untrainable, truncated), param)
    return EncodedDataset(
        token_ids=torch.frombuffer(token_ids, dtype=torch.int32),
        loss_weights=torch.frombuffer(loss_weights, dtype=torch.uint8),
        offsets=offsets,
        trainable_tokens=trainable_tokens,
        truncated=_tally(truncated),
        untrainable=_tally(untrainable),
    )


def _nothing_to_learn(untrainable: "array[int]", truncated: "array[int]") -> str:
    lines = ", ".join(str(line) for line in untrainable[:LINES_TOLD])
    more = ", …" if len(untrainable) > LINES_TOLD else ""
    why = " after the records were cut to the maximal length" if truncated else ""
    return f"no record has a token to learn{why} (lines {lines}{more})"


def _tally(lines: "array[int]") -> LineTally:
    return LineTally(tuple(lines[:LINES_TOLD]), len(lines))


def _invalid(message: str, param: str) -> TrainingFailed:
    return TrainingFailed(message, code="invalid_training_file", param=param)
