"""From conversations to tokens: what is learnt, and that serving sees what training saw."""

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import ChatRecord, CompletionRecord, Message, as_template_messages
from app.domain.errors import InvalidInput
from worker.trunk.chat import (
    EncodedRecord,
    encode_completion_prompt,
    encode_prompt,
    encode_record,
)
from worker.trunk.trunk import Trunk

MULTI_TURN = ChatRecord(
    [
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "First.", weight=0),
        Message("user", "Two?"),
        Message("assistant", "Second."),
        Message("user", "Three?"),
        Message("assistant", "Third."),
    ]
)
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "find", "arguments": '{"query": "bike"}'},
}
TOOL_CHAT = ChatRecord(
    [
        Message("user", "Find a bike."),
        Message("assistant", tool_calls=[CALL]),
        Message("tool", "red bike", tool_call_id="call-1"),
        Message("assistant", "There is a red bike."),
    ],
    tools=[TOOL],
)

CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's, which shows the reasoning of the last answer only.
SHORTENING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n{% endif %}{{ m.content }}",
)
MARKED = (
    "{{ messages | length }} turns\n{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}A: {% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{%- else %}U: {{ m.content }}{% endif %}\n{% endfor %}"
)


@pytest.fixture
def tokenizer(tiny_trunk: Trunk) -> PreTrainedTokenizerBase:
    """A tokenizer whose template a test may change."""
    return copy.copy(tiny_trunk.tokenizer)


def learnt_texts(tokenizer: PreTrainedTokenizerBase, encoded: EncodedRecord) -> list[str]:
    """Return the text of each run of tokens that carry loss."""
    runs: list[list[int]] = [[]]
    for token_id, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True):
        if weight:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [str(tokenizer.decode(run)) for run in runs if run]


def assert_parity(tokenizer: PreTrainedTokenizerBase, record: ChatRecord) -> None:
    """The tokens before each answer are the prompt that serving makes of what came before."""
    encoded = encode_record(tokenizer, record, 4096)
    messages = as_template_messages(record)
    for index, message in enumerate(record.messages):
        if message.role == "assistant":
            prompt = encode_prompt(tokenizer, messages[:index], record.tools)
            assert encoded.input_ids[: len(prompt)] == prompt


def test_learns_each_answer_with_its_end_but_not_its_header(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoded = encode_record(tokenizer, MULTI_TURN, 4096)

    # The first answer has weight 0; the default system prompt gave way to the record's own.
    assert learnt_texts(tokenizer, encoded) == ["Second.<|im_end|>", "Third.<|im_end|>"]
    assert str(tokenizer.decode(encoded.input_ids)) == tokenizer.apply_chat_template(
        as_template_messages(MULTI_TURN), tokenize=False
    )
    assert not encoded.truncated


@pytest.mark.parametrize(
    "content", ["plain", " space first", "\nline break first", "\n\n  both", "🚲 ünïcode", "\t\n x"]
)
def test_serving_sees_the_tokens_that_training_saw(
    tokenizer: PreTrainedTokenizerBase, content: str
) -> None:
    record = ChatRecord(
        [
            Message("user", "One?"),
            Message("assistant", content),
            Message("user", "Two?"),
            Message("assistant", content),
        ]
    )

    assert_parity(tokenizer, record)
    learnt = learnt_texts(tokenizer, encode_record(tokenizer, record, 4096))
    assert learnt == [content + "<|im_end|>"] * 2


def test_tools_are_rendered_and_calls_are_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = WITH_TOOLS

    encoded = encode_record(tokenizer, TOOL_CHAT, 4096)

    assert '"name": "find"' in str(tokenizer.decode(encoded.input_ids))
    assert learnt_texts(tokenizer, encoded) == [
        '<call>find{"query": "bike"}</call><|im_end|>',
        "There is a red bike.<|im_end|>",
    ]
    assert_parity(tokenizer, TOOL_CHAT)


def test_refuses_what_the_template_would_ignore(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidInput, match="does not support 'tools'"):
        encode_record(tokenizer, TOOL_CHAT, 4096)


def test_a_template_that_shortens_earlier_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = SHORTENING

    encoded = encode_record(tokenizer, MULTI_TURN, 4096)

    assert learnt_texts(tokenizer, encoded) == [
        "Second.<|im_end|>",
        "<think>\n\n</think>\nThird.<|im_end|>",
    ]
    assert_parity(tokenizer, MULTI_TURN)


def test_a_template_that_marks_what_the_assistant_says(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = MARKED

    encoded = encode_record(tokenizer, MULTI_TURN, 4096)

    assert learnt_texts(tokenizer, encoded) == ["Second.<|im_end|>", "Third.<|im_end|>"]


def test_refuses_a_template_that_hides_the_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages | length }} {{ messages[-1].content }}"

    with pytest.raises(InvalidInput, match="does not show where the assistant's answers are"):
        encode_record(tokenizer, MULTI_TURN, 4096)


def test_tells_what_the_template_does_not_accept(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(InvalidInput, match="roles must alternate"):
        encode_prompt(tokenizer, [{"role": "user", "content": "x"}], None)


def test_a_base_model_without_a_template_takes_completions_only(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = None

    with pytest.raises(InvalidInput, match="has no chat template"):
        encode_record(tokenizer, MULTI_TURN, 4096)
    assert encode_record(tokenizer, CompletionRecord("a", " b"), 4096).trainable_tokens == 2


def test_developer_messages_are_system_messages_to_older_templates(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ask: dict[str, Any] = {"role": "user", "content": "x"}

    assert encode_prompt(
        tokenizer, [{"role": "developer", "content": "Be brief."}, ask], None
    ) == encode_prompt(tokenizer, [{"role": "system", "content": "Be brief."}, ask], None)


def test_a_completion_is_learnt_to_its_end_and_its_prompt_is_not(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoded = encode_record(tokenizer, CompletionRecord("Once upon", " a time"), 4096)

    assert learnt_texts(tokenizer, encoded) == [" a time<|im_end|>"]
    prompt = encode_completion_prompt(tokenizer, "Once upon")
    assert encoded.input_ids[: len(prompt)] == prompt


def test_long_records_are_cut_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode_record(tokenizer, MULTI_TURN, 4096)

    cut = encode_record(tokenizer, MULTI_TURN, 30)

    assert cut.truncated
    assert cut.input_ids == whole.input_ids[:30]
    assert cut.loss_weights == whole.loss_weights[:30]
