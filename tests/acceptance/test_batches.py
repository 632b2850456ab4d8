"""A batch on the whole stack, answered by a real model while others wait for theirs."""

import pytest
from openai import OpenAI

from tests.conftest import INSTALLATIONS
from tests.support.answers import ask
from tests.support.batching import chat_line, content_of, create, wait_until
from tests.support.factories import BASE_MODEL


@pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")
def test_a_real_model_answers_as_it_does_to_those_who_wait(user: OpenAI) -> None:
    settings = {"max_completion_tokens": 6, "temperature": 0}
    lines = [chat_line(f"{number}", f"What is {number} and 1?", **settings) for number in range(12)]
    batch = create(user, lines)
    # Somebody who waits, in between.
    assert ask(user, BASE_MODEL, max_completion_tokens=2).choices
    ended = wait_until(user, batch, {"completed"}, within_seconds=180)
    answers = content_of(user, ended.output_file_id)
    assert [one["custom_id"] for one in answers] == [one["custom_id"] for one in lines]
    alone = user.chat.completions.create(**lines[3]["body"])
    assert answers[3]["response"]["body"]["choices"] == [alone.choices[0].to_dict()]
    assert ended.usage is not None
    assert ended.usage.output_tokens == sum(
        one["response"]["body"]["usage"]["completion_tokens"] for one in answers
    )
