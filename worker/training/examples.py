"""A dataset as a task's examples, with what was cut counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from app.domain.datasets import Record, read_records
from app.domain.errors import InvalidInput, TrainingFailed
from worker.tasks import Example
from worker.training.records import LINES_TOLD


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """The examples of a dataset, in the order of its file."""

    examples: Sequence[Example]

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
            "untrainable_lines": [],
            "untrainable_count": 0,
        }


def encode_examples(
    stream: BinaryIO, encode: Callable[[Record], Example], param: str
) -> EncodedExamples:
    """Read and encode a dataset. Raises: TrainingFailed, naming the line."""
    examples: list[Example] = []
    line = 0
    try:
        for line, record in read_records(stream):
            examples.append(replace(encode(record), line=line))
    except InvalidInput as error:
        where = "" if error.message.startswith("line ") else f"line {line}: "
        raise TrainingFailed(
            where + error.message, code="invalid_training_file", param=param
        ) from error
    return EncodedExamples(examples)
