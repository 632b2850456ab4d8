"""Prompts to be answered, with what a grader needs to judge the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.domain.datasets import Record, ReinforcementRecord
from worker.training.records import EncodedDataset, encode_dataset
from worker.trunk.chat import EncodedRecord


@dataclass(frozen=True, slots=True)
class PromptDataset:
    """The prompts of a dataset that leave room for an answer.

    Attributes:
        tokens: each record is one sequence, the prompt.
        items: of each record.
    """

    tokens: EncodedDataset
    items: Sequence[dict[str, Any]]

    def prompt_ids(self, record: int) -> tuple[int, ...]:
        token_ids, _ = self.tokens.tokens(self.tokens.sequences(record)[0])
        return tuple(token_ids.tolist())


def encode_prompts(
    stream: BinaryIO, encode: Callable[[Record], Sequence[EncodedRecord]], param: str
) -> PromptDataset:
    """Read and encode a dataset of prompts.

    Args:
        encode: a method's encoding of one record; none where its prompt is too long.
        param: what the dataset is called in messages: `training_file`.

    Raises:
        TrainingFailed: a record cannot be encoded, or none leaves room for an answer.
    """
    items: list[dict[str, Any]] = []

    def encode_noting_item(record: Record) -> Sequence[EncodedRecord]:
        assert isinstance(record, ReinforcementRecord)
        found = encode(record)
        if found:
            items.append(record.item)
        return found

    return PromptDataset(encode_dataset(stream, encode_noting_item, param, is_learnt=False), items)
