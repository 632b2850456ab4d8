"""Asking a served model one question, and reading its answer strictly."""

from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.support.wire import strict

QUESTION: Any = [{"role": "user", "content": "Where is my parcel? It was due on Monday."}]


def ask(client: OpenAI, model: str, **more: Any) -> ChatCompletion:
    """Return the likeliest answer to one question, unless `more` says otherwise."""
    asked = {"messages": QUESTION, "max_completion_tokens": 12, "temperature": 0} | more
    answer = client.chat.completions.with_raw_response.create(model=model, **asked)
    return strict(answer, ChatCompletion)


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""
