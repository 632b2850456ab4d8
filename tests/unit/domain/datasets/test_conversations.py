from typing import Any

import pytest

from app.domain.datasets import PreferenceRecord, ReinforcementRecord, as_template_messages
from tests.unit.domain.datasets.samples import (
    ASSISTANT,
    TOOL,
    USER,
    chat,
    lines,
    records_of,
    refusal_of,
)

WORSE = ASSISTANT | {"content": "c"}


def preference(**changes: Any) -> bytes:
    record = {
        "input": {"messages": [USER]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [WORSE],
    }
    return lines(record | changes)


REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "input_missing": (lines({"preferred_output": [ASSISTANT]}), ("'input' is missing",)),
    "input_without_messages": (preference(input={"messages": []}), ("'input.messages' is empty",)),
    "input_with_the_answer": (
        preference(input={"messages": [USER, ASSISTANT]}),
        ("'input.messages' ends", "'preferred_output'"),
    ),
    "input_with_another_key": (
        preference(input={"messages": [USER], "x": 1}),
        ("unknown key 'x' in 'input'",),
    ),
    "tools_of_another_type": (
        preference(input={"messages": [USER], "tools": [{"type": "x"}]}),
        ("'input.tools[0]'",),
    ),
    "output_not_a_list": (preference(preferred_output="b"), ("'preferred_output'", "array")),
    "output_empty": (preference(preferred_output=[]), ("'preferred_output' is empty",)),
    "output_of_the_user": (
        preference(non_preferred_output=[USER]),
        ("'non_preferred_output[0].role'", "'user'", "'assistant'"),
    ),
    "output_ends_with_a_tool": (
        preference(preferred_output=[{"role": "tool", "content": "x"}]),
        ("'preferred_output' must end",),
    ),
    "output_without_content": (
        preference(preferred_output=[{"role": "assistant"}]),
        ("'preferred_output[0].content' is missing",),
    ),
    "outputs_are_the_same": (preference(non_preferred_output=[ASSISTANT]), ("the same",)),
    "answer_in_a_reinforcement_file": (
        lines({"messages": [USER], "answer": 1}) + chat(USER, ASSISTANT, answer=1),
        ("line 2", "kind chat", "kind reinforcement"),
    ),
    "nothing_to_grade_by": (
        lines({"messages": [USER], "answer": 1}, {"messages": [USER]}),
        ("line 2",),
    ),
    "message_of_a_reinforcement_record": (
        lines({"messages": [{"role": "user", "content": 1}], "answer": 1}),
        ("'messages[0].content'", "int"),
    ),
    "deep_item": (
        b'{"messages": [{"role": "user", "content": "a"}], "answer": '
        + b"[" * 40
        + b"]" * 40
        + b"}",
        ("'answer' is nested deeper",),
    ),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_conversation_is_refused_by_field(content: bytes, told: tuple[str, ...]) -> None:
    message = refusal_of(content).message
    for words in told:
        assert words in message


def test_an_answer_is_learnt_as_the_client_dumps_it() -> None:
    dumped = {
        "content": "b",
        "refusal": None,
        "role": "assistant",
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    (record,) = records_of(chat(USER, dumped))
    (plain,) = records_of(chat(USER, {"role": "assistant", "content": "b"}))

    assert as_template_messages(record) == as_template_messages(plain)
    # Nothing that it says is left out.
    for said in ({"audio": {"id": "a"}}, {"annotations": [{"type": "url_citation"}]}):
        assert next(iter(said)) in refusal_of(chat(USER, dumped | said)).message


def test_a_preference_has_a_conversation_and_two_answers() -> None:
    (record,) = records_of(preference(input={"messages": [USER], "tools": [TOOL]}))
    assert isinstance(record, PreferenceRecord)
    assert as_template_messages(record.input) == [USER]
    assert record.input.tools == [TOOL]
    assert record.preferred_output[0].content == "b"
    assert record.non_preferred_output[0].content == "c"


def test_the_grader_gets_every_further_key_as_it_is() -> None:
    item = {"reference_answer": {"a": [1, None, True]}, "level": 0.5}
    (record,) = records_of(lines({"messages": [USER], "tools": [TOOL], **item}))
    assert isinstance(record, ReinforcementRecord)
    assert record.item == item
    assert record.tools == [TOOL]
    assert as_template_messages(record) == [USER]
