"""A dataset as a task's examples, with what was cut or left out counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from app.domain.datasets import Record, read_records
from app.domain.errors import InvalidInput, TrainingFailed
from worker.tasks import Example
from worker.training.batches import split
from worker.training.records import LINES_TOLD


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """The examples of a dataset, in the order of its file.

    Attributes:
        untrainable: lines of the records that gave no example.
    """

    examples: Sequence[Example]
    untrainable: Sequence[int] = ()

    def description(self) -> dict[str, Any]:
        """Return what the dataset holds, for the `prepared` message."""
        truncated = [example.line for example in self.examples if example.is_truncated]
        tokens = sum(example.cost for example in self.examples)
        return {
            "records": len(self.examples),
            "tokens": tokens,
            "trainable_tokens": tokens,
            "truncated_lines": truncated[:LINES_TOLD],
            "truncated_count": len(truncated),
            "untrainable_lines": list(self.untrainable[:LINES_TOLD]),
            "untrainable_count": len(self.untrainable),
        }

    def without(self, share: float, seed: int) -> tuple["EncodedExamples", list[Example]]:
        """Return the examples to learn from, and those of a share of the records that is kept out.

        The pieces of a record stay together: one is no judge of what was learnt from another.
        """
        lines = list(dict.fromkeys(example.line for example in self.examples))
        _, out = split(len(lines), share, seed)
        kept_out = {lines[number] for number in out}
        learnt = [example for example in self.examples if example.line not in kept_out]
        judged = [example for example in self.examples if example.line in kept_out]
        return replace(self, examples=learnt), judged


def encode_examples(
    stream: BinaryIO, encode: Callable[[Record], Example | Sequence[Example]], param: str
) -> EncodedExamples:
    """Read and encode a dataset.

    Raises:
        TrainingFailed: a record cannot be encoded, which its line is named for; or none can be
            learnt from.
    """
    examples: list[Example] = []
    untrainable: list[int] = []
    line = 0
    try:
        for line, record in read_records(stream):
            found = encode(record)
            pieces = [found] if isinstance(found, Example) else found
            examples += [replace(piece, line=line) for piece in pieces]
            if not pieces:
                untrainable.append(line)
    except InvalidInput as error:
        where = "" if error.message.startswith(("line ", "row ")) else f"line {line}: "
        raise _invalid(where + error.message, param) from error
    if not examples:
        raise _invalid("no record has anything that the model could learn", param)
    return EncodedExamples(examples, untrainable)


def _invalid(message: str, param: str) -> TrainingFailed:
    return TrainingFailed(message, code="invalid_training_file", param=param)
