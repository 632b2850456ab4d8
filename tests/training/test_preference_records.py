"""Preference and feedback records as tokens, with the tokenizer of a real model."""

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.domain.datasets import (
    FeedbackRecord,
    Message,
    PreferenceInput,
    PreferenceRecord,
    as_template_messages,
)
from app.domain.errors import InvalidInput
from tests.training.test_chat import CALL, TOOL, WITH_TOOLS, learnt_texts
from worker.training.preference_records import encode_feedback, encode_preference, mismatched
from worker.trunk.chat import encode_completion_prompt, encode_prompt

QUESTION = [
    Message("system", "Be brief."),
    Message("user", "Which bike is in stock?"),
    Message("assistant", "Do you mean a road bike?"),
    Message("user", "Yes."),
]


@pytest.fixture(scope="module")
def tokenizer(base_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_model_dir, local_files_only=True)


def preference(*prompt: Message, better: Any, worse: Any, **fields: Any) -> PreferenceRecord:
    return PreferenceRecord(PreferenceInput(list(prompt), **fields), better, worse)


def answer(text: str) -> list[Message]:
    return [Message("assistant", text)]


@pytest.mark.parametrize("better", ["The red one.", "\nThe red one.", " red", "🚲"])
def test_both_answers_follow_the_prompt_that_serving_makes(
    tokenizer: PreTrainedTokenizerBase, better: str
) -> None:
    record = preference(*QUESTION, better=answer(better), worse=answer("None, go away."))

    chosen, rejected = encode_preference(tokenizer, record, 4096)

    prompt = encode_prompt(tokenizer, as_template_messages(record.input), None)
    assert chosen.input_ids[: len(prompt)] == rejected.input_ids[: len(prompt)] == prompt
    # The assistant's question in the prompt is not learnt, and the next token after it is.
    assert chosen.loss_weights.index(1) == rejected.loss_weights.index(1) == len(prompt)
    assert learnt_texts(tokenizer, chosen) == [better + "<|im_end|>"]
    assert learnt_texts(tokenizer, rejected) == ["None, go away.<|im_end|>"]
    assert (chosen.score, rejected.score) == (1.0, 0.0)
    # The record can be encoded once more, as for another epoch.
    assert QUESTION[2].weight is None


def test_an_answer_of_several_messages_is_learnt_but_for_its_tools(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with_tools = copy.copy(tokenizer)
    with_tools.chat_template = WITH_TOOLS
    better = [
        Message("assistant", tool_calls=[CALL]),
        Message("tool", "red bike", tool_call_id="call-1"),
        Message("assistant", "The red one."),
    ]
    record = preference(
        Message("user", "Find a bike."), better=better, worse=answer("No."), tools=[TOOL]
    )

    chosen, rejected = encode_preference(with_tools, record, 4096)

    assert learnt_texts(tokenizer, chosen) == [
        '<call>find{"query": "bike"}</call><|im_end|>',
        "The red one.<|im_end|>",
    ]
    assert learnt_texts(tokenizer, rejected) == ["No.<|im_end|>"]
    for encoded in (chosen, rejected):
        assert '"name": "find"' in str(tokenizer.decode(encoded.input_ids))


def test_each_sequence_is_cut_by_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    record = preference(*QUESTION, better=answer("Red."), worse=answer("one two three " * 20))
    whole, _ = encode_preference(tokenizer, record, 4096)

    chosen, rejected = encode_preference(tokenizer, record, len(whole.input_ids))

    assert chosen == whole
    assert rejected.truncated
    assert len(rejected.input_ids) == len(whole.input_ids)
    assert rejected.trainable_tokens > 0
    too_short, _ = encode_preference(tokenizer, record, whole.loss_weights.index(1))
    assert too_short.trainable_tokens == 0


def test_refuses_what_the_template_would_ignore(tokenizer: PreTrainedTokenizerBase) -> None:
    record = preference(*QUESTION, better=answer("a"), worse=answer("b"), tools=[TOOL])

    with pytest.raises(InvalidInput, match="does not support 'tools'"):
        encode_preference(tokenizer, record, 4096)


@pytest.mark.parametrize("label", [True, False])
def test_feedback_is_a_completion_with_an_opinion(
    tokenizer: PreTrainedTokenizerBase, label: bool
) -> None:
    encoded = encode_feedback(tokenizer, FeedbackRecord("Once upon", " a time", label), 4096)

    prompt = encode_completion_prompt(tokenizer, "Once upon")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.loss_weights.index(1) == len(prompt)
    assert learnt_texts(tokenizer, encoded) == [" a time<|im_end|>"]
    assert encoded.score == label
    assert encode_feedback(tokenizer, FeedbackRecord("Once upon", " a time", label), 2).truncated


def test_mismatched_answers_come_from_the_record_before(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    records = [
        encode_feedback(tokenizer, FeedbackRecord(prompt, completion, label), 4096)
        for prompt, completion, label in [
            ("Once upon", " a time", True),
            ("Two and two", " are four, not five", False),
            ("The sky", " is blue", True),
        ]
    ]

    found = mismatched(records, 4096)

    assert [str(tokenizer.decode(one.input_ids)) for one in found] == [
        "Once upon is blue<|im_end|>",
        "Two and two a time<|im_end|>",
        "The sky are four, not five<|im_end|>",
    ]
    assert [learnt_texts(tokenizer, one) for one in found] == [
        [" is blue<|im_end|>"],
        [" a time<|im_end|>"],
        [" are four, not five<|im_end|>"],
    ]
    assert [one.score for one in found] == [1.0, 0.0, 1.0]
    assert not any(one.truncated for one in found)
    longest = mismatched(records, 5)[2]
    assert longest.truncated
    assert len(longest.input_ids) == len(longest.loss_weights) == 5
    assert mismatched(records[:1], 4096) == records[:1]
