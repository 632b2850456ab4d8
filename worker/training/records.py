"""A dataset as tokens: encoded once, held compactly, with what was cut or left out counted."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

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
    """All trainable records of a dataset as token sequences, one after another.

    A record is one sequence, or several that a method needs together: an answer that is preferred
    and one that is not.

    Attributes:
        token_ids: [tokens] int32.
        loss_weights: [tokens] uint8, 1 for a token that is learnt.
        offsets: where each sequence starts, and the end of the last: sequences + 1 numbers.
        starts: the first sequence of each record, and their number: records + 1 numbers.
        scores: what the method knows of each sequence: 1 where it is wanted, 0 where it is not.
        lines: line of each record in its file.
        trainable_tokens: tokens that carry loss.
        truncated: records that were cut to the maximal length.
        untrainable: records left out, because a sequence of theirs has no token that carries loss.
    """

    token_ids: Tensor
    loss_weights: Tensor
    offsets: "array[int]"
    starts: "array[int]"
    scores: "array[float]"
    lines: "array[int]"
    trainable_tokens: int
    truncated: LineTally
    untrainable: LineTally

    @property
    def num_records(self) -> int:
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    def description(self, records: Sequence[int]) -> dict[str, Any]:
        """Return what the records that are learnt from hold, for the `prepared` message."""
        sequences = [sequence for record in records for sequence in self.sequences(record)]
        learnt = sum(int(self.tokens(sequence)[1][1:].sum()) for sequence in sequences)
        return {
            "records": len(records),
            "tokens": sum(self.length(record) for record in records),
            "trainable_tokens": learnt,
            "truncated_lines": self.truncated.first,
            "truncated_count": self.truncated.count,
            "untrainable_lines": self.untrainable.first,
            "untrainable_count": self.untrainable.count,
        }

    def length(self, record: int) -> int:
        """Return the number of a record's tokens."""
        return self.offsets[self.starts[record + 1]] - self.offsets[self.starts[record]]

    def sequences(self, record: int) -> range:
        """Return the numbers of a record's sequences."""
        return range(self.starts[record], self.starts[record + 1])

    def tokens(self, sequence: int) -> tuple[Tensor, Tensor]:
        """Return a sequence's token ids [tokens] int32 and loss weights, uint8, as views."""
        rows = slice(self.offsets[sequence], self.offsets[sequence + 1])
        return self.token_ids[rows], self.loss_weights[rows]


class DatasetBuilder:
    """Collects encoded records into a dataset.

    Args:
        is_learnt: leave out what has no token that carries loss; prompts alone have none.
    """

    def __init__(self, *, is_learnt: bool = True) -> None:
        self._is_learnt = is_learnt
        self._token_ids, self._loss_weights = array("i"), array("B")
        self._offsets, self._starts = array("q", [0]), array("q", [0])
        self._scores, self._lines = array("d"), array("q")
        self._truncated, self._untrainable = array("q"), array("q")
        self._trainable_tokens = 0

    def add(self, line: int, sequences: Sequence[EncodedRecord]) -> None:
        """Add the sequences of the record on a line."""
        if any(one.truncated for one in sequences):
            self._truncated.append(line)
        is_void = self._is_learnt and any(one.trainable_tokens == 0 for one in sequences)
        if not sequences or is_void:
            self._untrainable.append(line)
            return
        for one in sequences:
            self._trainable_tokens += one.trainable_tokens
            self._token_ids.extend(one.input_ids)
            self._loss_weights.extend(one.loss_weights)
            self._offsets.append(len(self._token_ids))
            self._scores.append(one.score)
        self._starts.append(len(self._scores))
        self._lines.append(line)

    def build(self, param: str) -> EncodedDataset:
        """Return the dataset. Raises: TrainingFailed, if there is nothing to learn."""
        if not self._lines and not self._is_learnt:
            raise _no_room_for_answers(self._untrainable)
        if not self._lines:
            raise _invalid(_nothing_to_learn(self._untrainable, self._truncated), param)
        return EncodedDataset(
            token_ids=torch.frombuffer(self._token_ids, dtype=torch.int32),
            loss_weights=torch.frombuffer(self._loss_weights, dtype=torch.uint8),
            offsets=self._offsets,
            starts=self._starts,
            scores=self._scores,
            lines=self._lines,
            trainable_tokens=self._trainable_tokens,
            truncated=_tally(self._truncated),
            untrainable=_tally(self._untrainable),
        )


def encode_dataset(
    stream: BinaryIO,
    encode: Callable[[Record], Sequence[EncodedRecord]],
    param: str,
    *,
    is_learnt: bool = True,
) -> EncodedDataset:
    """Read and encode a dataset.

    Args:
        stream: a dataset in any format.
        encode: a method's encoding of one record.
        param: what the dataset is called in messages: `training_file`.
        is_learnt: see `DatasetBuilder`.

    Raises:
        TrainingFailed: a record cannot be encoded, or none has a token that carries loss.
    """
    builder = DatasetBuilder(is_learnt=is_learnt)
    line = 0
    try:
        for line, record in read_records(stream):
            builder.add(line, encode(record))
    except InvalidInput as error:
        where = "" if error.message.startswith(("line ", "row ")) else f"line {line}: "
        raise _invalid(where + error.message, param) from error
    return builder.build(param)


def _nothing_to_learn(untrainable: "array[int]", truncated: "array[int]") -> str:
    why = " after the records were cut to the maximal length" if truncated else ""
    return f"no record has a token to learn{why} (lines {_first(untrainable)})"


def _no_room_for_answers(untrainable: "array[int]") -> TrainingFailed:
    return TrainingFailed(
        f"no prompt leaves room for an answer (lines {_first(untrainable)}): max_completion_tokens "
        "and the prompt together exceed max_length_tokens",
        code="no_room_for_answers",
        param="method.reinforcement.hyperparameters.max_completion_tokens",
    )


def _first(lines: "array[int]") -> str:
    more = ", …" if len(lines) > LINES_TOLD else ""
    return ", ".join(str(line) for line in lines[:LINES_TOLD]) + more


def _tally(lines: "array[int]") -> LineTally:
    return LineTally(tuple(lines[:LINES_TOLD]), len(lines))


def _invalid(message: str, param: str) -> TrainingFailed:
    return TrainingFailed(message, code="invalid_training_file", param=param)
