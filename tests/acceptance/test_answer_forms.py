"""OpenAI's client has a real model answer in a form: schemas, calls of functions, responses."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field

from app.base_models import ensure_installed, load_catalogue
from app.storage import open_storage
from tests.conftest import INSTALLATIONS
from tests.serving.test_tool_calls import HERMES
from tests.support.adapters import adapter_files
from tests.support.answers import QUESTION, ask
from tests.support.factories import BASE_MODEL
from tests.support.service import Service, serve_adapter
from worker.trunk.listing import write_listing

# No database has a part in it.
pytestmark = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")


class Ticket(BaseModel):
    """What a question is about."""

    model_config = ConfigDict(extra="forbid")

    topic: Literal["parcel", "refund"]
    is_urgent: bool
    words: list[Literal["late", "lost", "broken"]] = Field(max_length=2)


@pytest.fixture(scope="module")
def caller(stack: Service, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a fine-tuned model whose chat template has tools."""
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    base = ensure_installed(catalogue.get(BASE_MODEL), models_dir)
    tokenizer = (base.directory / "tokenizer.json").read_bytes()
    manifest = {
        "format_version": 1,
        "base_model": {"id": base.id, "name_or_path": base.name, "revision": base.revision},
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "chat_template_sha256": hashlib.sha256(HERMES.encode()).hexdigest(),
    }
    files = adapter_files() | {
        "manifest.json": json.dumps(manifest).encode(),
        "chat_template.jinja": HERMES.encode(),
        "tokenizer.json": tokenizer,
    }
    adapter = serve_adapter(stack, stack.key, files=files)
    write_listing(open_storage(stack.settings.storage_url).directory(adapter.storage_prefix).parent)
    return adapter.name


def test_a_pydantic_model_comes_back_filled_in(user: OpenAI) -> None:
    answer = user.chat.completions.parse(
        model=BASE_MODEL, messages=QUESTION, response_format=Ticket, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Ticket)
    with user.chat.completions.stream(
        model=BASE_MODEL, messages=QUESTION, response_format=Ticket, temperature=0
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed
    response = user.responses.parse(
        model=BASE_MODEL, input=QUESTION[0]["content"], text_format=Ticket, temperature=0
    )
    assert response.output_parsed == answer.choices[0].message.parsed


def test_a_function_is_called_and_its_result_answered(user: OpenAI, caller: str) -> None:
    tools: Any = [pydantic_function_tool(Ticket, name="open_ticket")]
    choice: Any = {"type": "function", "function": {"name": "open_ticket"}}
    asked: Any = {"tools": tools, "temperature": 0, "max_completion_tokens": 64}
    called: ChatCompletion = ask(user, caller, tool_choice=choice, **asked)
    message = called.choices[0].message
    assert called.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls or ()
    assert call.type == "function"
    Ticket.model_validate_json(call.function.arguments)

    with user.chat.completions.stream(
        model=caller, messages=QUESTION, tool_choice=choice, **asked
    ) as stream:
        streamed = stream.get_final_completion()
    (again,) = streamed.choices[0].message.tool_calls or ()
    assert again.function.arguments == call.function.arguments
    assert isinstance(again.function.parsed_arguments, Ticket)

    result = {"role": "tool", "tool_call_id": call.id, "content": "Ticket 7 is open."}
    turns = [*QUESTION, message.model_dump(exclude_none=True), result]
    answer = ask(user, caller, messages=turns, **(asked | {"max_completion_tokens": 2}))
    assert answer.usage is not None
    assert called.usage is not None
    assert answer.usage.prompt_tokens > called.usage.prompt_tokens


@pytest.mark.slow
def test_a_response_calls_a_function_in_its_own_events(user: OpenAI, caller: str) -> None:
    parameters = Ticket.model_json_schema()
    tools: Any = [
        {"type": "function", "name": "open_ticket", "parameters": parameters, "strict": True}
    ]
    asked: Any = {
        "model": caller,
        "input": QUESTION[0]["content"],
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    (item,) = user.responses.create(**asked).output
    assert item.type == "function_call"
    with user.responses.stream(**asked) as stream:
        types = {event.type for event in stream}
        (again,) = stream.get_final_response().output
    assert "response.function_call_arguments.delta" in types
    assert again.type == "function_call"
    assert again.arguments == item.arguments
    Ticket.model_validate_json(again.arguments)
    turns: Any = [
        {"role": "user", "content": asked["input"]},
        again.model_dump(include={"type", "call_id", "name", "arguments"}),
        {"type": "function_call_output", "call_id": again.call_id, "output": "Ticket 7 is open."},
    ]
    further = asked | {"input": turns, "tool_choice": "auto", "max_output_tokens": 2}
    second = user.responses.create(**further)
    assert second.usage is not None


def test_a_model_without_tools_says_so(user: OpenAI) -> None:
    tools: Any = [pydantic_function_tool(Ticket, name="open_ticket")]
    with pytest.raises(BadRequestError, match="does not support 'tools'") as refused:
        ask(user, BASE_MODEL, tools=tools)
    assert refused.value.param == "tools"
