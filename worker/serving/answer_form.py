"""Which form the answer of a chat has: its grammar, and whether calls are read out of it."""

from dataclasses import dataclass

from app.domain.errors import InvalidInput
from worker.generation.grammar import Grammar, json_schema_grammar, lark_grammar
from worker.serving.served_model import ServedModel
from worker.serving.tool_formats import ToolFormat, find_tool_format
from worker.serving.tool_grammars import CallRules
from worker.serving.tools import NamedTool, callable_functions
from worker.serving.wire import ChatRequest


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer has to be, and how it is read.

    Attributes:
        grammar: None leaves the answer open.
        calls: how calls are written in it; None if there are none to look for.
        shown_special_ids: special tokens that tell calls from text.
    """

    grammar: Grammar | None = None
    calls: ToolFormat | None = None
    shown_special_ids: frozenset[int] = frozenset()


async def answer_form(asked: ChatRequest, model: ServedModel) -> AnswerForm:
    """Return the form of the answer that a request asks for, its grammar compiled.

    Calls are enforced where a call is required, where a schema is strict, where there may be one
    at most, and where text would have a form. Otherwise the model is free, and slowed by nothing.

    Raises:
        InvalidInput: naming the field that asks for what is not possible.
    """
    rules = _call_rules(asked, model)
    schema = asked.response_format.answer_schema
    if rules is None:
        if schema is None:
            return AnswerForm()
        definition = json_schema_grammar(schema)
        return AnswerForm(await model.base.compile_grammar(definition, "response_format"))
    for function in rules.functions:
        if function.is_strict or asked.is_call_required:
            # By itself first, so that a refusal names the function.
            alone = json_schema_grammar(function.parameters, is_lenient=not function.is_strict)
            await model.base.compile_grammar(alone, function.param)
    text = None
    if asked.is_call_required:
        text = rules.calls()
    elif schema is not None:
        await model.base.compile_grammar(json_schema_grammar(schema), "response_format")
        text = rules.calls_or_json(schema)
    elif not rules.is_parallel or any(function.is_strict for function in rules.functions):
        text = rules.calls_or_text()
    grammar = None
    if text is not None:
        grammar = await model.base.compile_grammar(lark_grammar(text), "tools")
    return AnswerForm(grammar, rules.form, frozenset(rules.special.values()))


def _call_rules(asked: ChatRequest, model: ServedModel) -> CallRules | None:
    """Return the rules of calls; None if there are none to make, or none that are known."""
    functions = callable_functions(asked.tools, asked.tool_choice)
    if not functions:
        return None
    form = find_tool_format(model.base.chat_template(model.chat_template))
    is_parallel = asked.parallel_tool_calls and not isinstance(asked.tool_choice, NamedTool)
    if form is not None:
        special = model.base.vocabulary.special_ids_in(form.begin + form.between + form.end)
        return CallRules(form, functions, special, is_parallel)
    has_strict = any(function.is_strict for function in functions)
    if asked.is_call_required or has_strict or not is_parallel:
        param = "tool_choice" if asked.is_call_required else "tools"
        raise InvalidInput(
            f"'{param}': the chat template of this model writes calls in a way that is not known "
            "here: they can be neither enforced nor counted",
            param=param,
            code="unsupported_parameter",
        )
    return None
