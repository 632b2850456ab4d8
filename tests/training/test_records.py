"""Datasets as tokens: what is cut, what is left out and what is refused."""

import io
import json
from typing import Any

import pytest

from app.domain.errors import TrainingFailed
from tests.training.conftest import SHORT_CHATS
from worker.training.records import EncodedDataset, encode_dataset
from worker.trunk.chat import EncodedRecord, encode_record
from worker.trunk.trunk import Trunk


def encode(trunk: Trunk, *records: Any, max_length_tokens: int = 256) -> EncodedDataset:
    stream = io.BytesIO(b"".join(json.dumps(record).encode() + b"\n" for record in records))

    def encode_one(record: Any) -> list[EncodedRecord]:
        return [encode_record(trunk.tokenizer, record, max_length_tokens)]

    return encode_dataset(stream, encode_one, "training_file")


def completion(prompt: str, text: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": text}


def test_holds_each_record_as_it_was_encoded(tiny_trunk: Trunk) -> None:
    dataset = encode(tiny_trunk, *SHORT_CHATS)

    assert dataset.num_records == len(SHORT_CHATS)
    assert sum(dataset.length(i) for i in range(5)) == dataset.num_tokens
    token_ids, weights = dataset.tokens(1)
    learnt = [i for i, weight in zip(token_ids.tolist(), weights.tolist(), strict=True) if weight]
    answer = SHORT_CHATS[1]["messages"][1]["content"]
    assert tiny_trunk.tokenizer.decode(learnt) == answer + "<|im_end|>"
    assert dataset.trainable_tokens == int(dataset.loss_weights.sum())


def test_counts_and_names_what_was_cut_and_left_out(tiny_trunk: Trunk) -> None:
    dataset = encode(
        tiny_trunk,
        completion("short", " answer"),
        completion("a b c d e f g h i j", " left out, since the prompt alone fills it"),
        completion("a b c", " cut in the middle of a long answer"),
        max_length_tokens=8,
    )

    assert (dataset.truncated.first, dataset.truncated.count) == ((2, 3), 2)
    assert (dataset.untrainable.first, dataset.untrainable.count) == ((2,), 1)
    assert dataset.num_records == 2
    assert dataset.length(1) == 8


def test_names_at_most_twenty_lines(tiny_trunk: Trunk) -> None:
    records = [completion("x", " y")] + [completion("a b c d e", " z")] * 30

    dataset = encode(tiny_trunk, *records, max_length_tokens=4)

    assert dataset.untrainable.first == tuple(range(2, 22))
    assert dataset.untrainable.count == 30


def test_refuses_a_dataset_without_anything_to_learn(tiny_trunk: Trunk) -> None:
    unlearnt = {"role": "assistant", "content": "unlearnt", "weight": 0}
    silent = {"messages": [SHORT_CHATS[0]["messages"][0], unlearnt]}

    with pytest.raises(TrainingFailed, match=r"no record has a token to learn \(lines 1, 2\)") as e:
        encode(tiny_trunk, silent, silent)

    assert (e.value.code, e.value.param) == ("invalid_training_file", "training_file")


def test_names_the_line_that_the_template_does_not_take(tiny_trunk: Trunk) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with_call = {"messages": [{"role": "assistant", "tool_calls": [call]}]}

    with pytest.raises(TrainingFailed, match=r"line 2: .*does not support 'tool_calls'"):
        encode(tiny_trunk, SHORT_CHATS[0], with_call)


def test_names_the_line_that_is_not_a_record(tiny_trunk: Trunk) -> None:
    with pytest.raises(TrainingFailed, match="line 2: "):
        encode(tiny_trunk, SHORT_CHATS[0], {"messages": []})
