"""Calls of functions: forced out of a real model, and read out of every format, piece by piece."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.registry import Registry
from tests.generation.test_grammar import takes
from tests.serving.conftest import RunScenario
from tests.serving.test_engine_app import answer, chat, events, refusal
from worker.generation.grammar import GrammarCompiler, lark_grammar
from worker.generation.request import Piece
from worker.generation.vocabulary import Vocabulary
from worker.serving.chat_wording import ChatWording
from worker.serving.engine import Engine
from worker.serving.tool_calls import Arguments, CallBegun, CallReader, Content, Said
from worker.serving.tool_formats import TOOL_FORMATS, ToolFormat, find_tool_format
from worker.serving.tool_grammars import CallRules
from worker.serving.tools import Tool, callable_functions
from worker.trunk.listing import write_listing
from worker.trunk.trunk import Trunk

# What Hermes' template does, in short.
HERMES = """\
{%- if tools %}<|im_start|>system
You call functions. <tools>{{ tools | tojson }}</tools><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'tool' %}<tool_response>{{ message.content }}</tool_response>
{%- else %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{%- endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

PATH = "/v1/chat/completions"


def tool(name: str, strict: bool = False, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


WEATHER = tool("weather", city={"enum": ["Paris", "Oslo"]}, days={"type": "integer", "maximum": 9})
CLOCK = tool("clock", strict=True, zone={"enum": ["UTC", "CET"]})


@pytest.fixture
def with_hermes(with_engine: RunScenario, adapter_root: Path) -> RunScenario:
    """Run a scenario with an adapter, `red`, whose chat template has tools."""
    directory = adapter_root / "red" / "adapter"
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["chat_template_sha256"] = hashlib.sha256(HERMES.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "chat_template.jinja").write_text(HERMES)
    (directory.parent / "files.json").unlink()
    write_listing(directory.parent)

    def run(scenario: Any) -> None:
        async def loaded(client: httpx.AsyncClient, engine: Engine) -> None:
            body = {"lora_name": "red", "lora_path": "red/adapter"}
            assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
            await scenario(client, engine)

        with_engine(loaded)

    return run


def asking(*tools: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = chat(model="red", max_tokens=64, temperature=1, seed=2, tools=list(tools))
    return {**body, **fields}


def test_a_forced_call_is_valid_whole_and_streamed(with_hermes: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        named = {"type": "function", "function": {"name": "weather"}}
        asked = asking(WEATHER, CLOCK, tool_choice=named, n=2, logprobs=True)
        whole = (await answer(client, PATH, asked))["choices"]
        for choice in whole:
            assert choice["finish_reason"] == "tool_calls"
            message = choice["message"]
            assert message["content"] is None
            (call,) = message["tool_calls"]
            assert (call["type"], call["id"][:5]) == ("function", "call_")
            assert call["function"]["name"] == "weather"
            arguments = json.loads(call["function"]["arguments"])
            assert arguments["city"] in ("Paris", "Oslo")
            assert arguments["days"] <= 9

        *chunks, _ = await events(client, PATH, asked)
        for index in (0, 1):
            parts = [one for c in chunks for one in c["choices"] if one["index"] == index]
            calls = [call for part in parts for call in part["delta"].get("tool_calls", ())]
            head, *pieces = calls
            assert head.keys() == {"index", "id", "type", "function"}
            assert head["function"] == {"name": "weather", "arguments": ""}
            assert len(pieces) > 2
            assert all(piece.keys() == {"index", "function"} for piece in pieces)
            text = "".join(piece["function"]["arguments"] for piece in pieces)
            assert text == whole[index]["message"]["tool_calls"][0]["function"]["arguments"]
            assert parts[-1]["finish_reason"] == "tool_calls"
            told = [t["token"] for p in parts if p["logprobs"] for t in p["logprobs"]["content"]]
            assert told == [t["token"] for t in whole[index]["logprobs"]["content"]]

    with_hermes(scenario)


def test_stop_strings_cut_no_call_that_has_to_come(with_hermes: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = asking(CLOCK, tool_choice="required", parallel_tool_calls=False)
        (choice,) = (await answer(client, PATH, {**asked, "stop": ["UTC", "CET", "}"]}))["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["zone"] in ("UTC", "CET")

    with_hermes(scenario)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>\n{"name": "a", "arguments": {"x": ', "stop"),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}', "stop"),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}', "tool_calls"),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>', "tool_calls"),
    ],
)
def test_a_call_that_was_cut_is_not_reported_as_one(
    vocabulary: Vocabulary, text: str, reason: str
) -> None:
    piece = Piece(0, text, (), 9, "stop")
    whole = ChatWording(vocabulary, 1, False, TOOL_FORMATS["hermes"]).whole_choice(piece)
    assert whole["finish_reason"] == reason
    *_, last = ChatWording(vocabulary, 1, False, TOOL_FORMATS["hermes"]).chunk_choices(piece)
    assert last["finish_reason"] == reason


def test_a_required_call_is_of_any_function_and_the_next_turn_renders(
    with_hermes: RunScenario,
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = asking(WEATHER, CLOCK, tool_choice="required", parallel_tool_calls=False)
        (choice,) = (await answer(client, PATH, asked))["choices"]
        message = choice["message"]
        (call,) = message["tool_calls"]
        assert call["function"]["name"] in ("weather", "clock")
        result = {"role": "tool", "tool_call_id": call["id"], "content": "12 degrees"}
        turns = [*asked["messages"], message, result]
        follow_up = {**asked, "messages": turns, "tool_choice": "auto", "max_tokens": 2}
        first = await answer(client, PATH, {**asked, "max_tokens": 1})
        second = await answer(client, PATH, follow_up)
        assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]

    with_hermes(scenario)


def test_json_is_what_an_answer_without_calls_is(with_hermes: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = asking(WEATHER, response_format={"type": "json_object"}, max_tokens=40)
        (choice,) = (await answer(client, PATH, asked))["choices"]
        message = choice["message"]
        assert message.get("tool_calls") or message["content"].startswith("{")

    with_hermes(scenario)


@pytest.mark.parametrize(
    ("is_parallel", "text", "is_possible"),
    [
        (True, "It is late.", True),
        (True, "I look.\n{call}\n{call}", True),
        (False, "I look.\n{call}", True),
        (False, "{call}\n{call}", False),
        (True, '<tool_call>\n{"name": "clock", "arguments": {"zone": "EST"}}', False),
        (True, "<tool_call>\nnothing", False),
    ],
)
def test_what_is_strict_is_kept_where_the_model_is_free(
    trunk: Trunk, vocabulary: Vocabulary, is_parallel: bool, text: str, is_possible: bool
) -> None:
    function = callable_functions([Tool(**CLOCK)], "auto")
    rules = CallRules(TOOL_FORMATS["hermes"], function, {}, is_parallel)
    compiler = GrammarCompiler(vocabulary, int(trunk.head_weight.shape[0]))
    grammar = compiler.compile(lark_grammar(rules.calls_or_text()), "tools")
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
    assert takes(grammar, vocabulary, text.replace("{call}", call)) == is_possible


def test_choices_and_functions_that_are_refused(with_hermes: RunScenario) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> None:
        bad = tool("bad", strict=True, city={"type": "string", "not": {}})
        loose = tool("loose", strict=True)
        loose["function"]["parameters"]["additionalProperties"] = True
        endless = tool("endless")
        endless["function"]["parameters"] = {
            "type": "object",
            "$defs": {"a": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        }
        other = {"type": "function", "function": {"name": "other"}}
        for fields, param in (
            (asking(WEATHER, tool_choice=other), "tool_choice"),
            (asking(tool_choice="required"), "tool_choice"),
            (asking(WEATHER, WEATHER), "tools[1].function.name"),
            (asking(WEATHER, bad), "tools[1].function.parameters"),
            (asking(loose), "tools[0].function.parameters"),
            (asking(endless, tool_choice="required"), "tools[0].function.parameters"),
            (asking(tool("a b")), "tools[0].function.name"),
            ({**asking(WEATHER), "model": "smollm2-135m"}, "tools"),
        ):
            assert (await refusal(client, PATH, fields, 400))["param"] == param

    with_hermes(scenario)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (
            "hermes",
            'I look. \n<tool_call>\n{"name": "a", "arguments": {"x": "}\\"{", "y": [{}]}}\n'
            '</tool_call>\n<tool_call>\n{"arguments": {"z": 1}, "name": "b"}\n</tool_call>\n',
            "I look.",
            [("a", '{"x": "}\\"{", "y": [{}]}'), ("b", '{"z": 1}')],
        ),
        ("hermes", "1 < 2, <tool \n", "1 < 2, <tool \n", []),
        ("hermes", "a <tool_call> is a tag", "a <tool_call> is a tag", []),
        (
            "hermes",
            '<tool_call>{"x": 1}</tool_call>',
            '<tool_call>{"x": 1}</tool_call>',
            [],
        ),
        ("hermes", '<tool_call>\n{"name": "a", "arguments": {"x": ', "", [("a", '{"x": ')]),
        ("hermes", '<tool_call>\n{"name": "a', '<tool_call>\n{"name": "a', []),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": 1}}]',
            "",
            [("a", "{}"), ("b", '{"x": 1}')],
        ),
        (
            "llama",
            '{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}',
            "",
            [("a", '{"x": 1}'), ("b", "{}")],
        ),
        ("llama", 'Say {"name": "a", "parameters": {}}', 'Say {"name": "a", "parameters": {}}', []),
        ("llama", '{"city": "Oslo"}', '{"city": "Oslo"}', []),
    ],
)
def test_calls_are_told_from_content_however_the_text_comes(
    step: int, form: str, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    reader = CallReader(TOOL_FORMATS[form])
    said: list[Said] = []
    for start in range(0, len(text), step):
        said += reader.push(text[start : start + step])
    said += reader.finish()
    assert "".join(part.text for part in said if isinstance(part, Content)) == content
    found = [(part.name, "") for part in said if isinstance(part, CallBegun)]
    for part in said:
        if isinstance(part, Arguments):
            name, before = found[part.index]
            found[part.index] = (name, before + part.text)
    assert found == calls


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (HERMES, "hermes"),
        ('{{ "[AVAILABLE_TOOLS]" }}{{ "[TOOL_CALLS] [" }}', "mistral"),
        ('<|start_header_id|> {"name": function name, "parameters": …}', "llama"),
        ("{{ messages }}{{ tools }}", None),
    ],
)
def test_a_template_tells_how_its_models_write_calls(template: str, name: str | None) -> None:
    formats: Registry[ToolFormat] = TOOL_FORMATS
    assert find_tool_format(template) == (None if name is None else formats[name])
