"""The fields `tools`, `tool_choice` and `parallel_tool_calls`: which functions may be called."""

from collections.abc import Sequence
from typing import Any, Literal

from app.domain.errors import InvalidInput
from worker.serving.body import Wire
from worker.serving.response_format import SchemaName, refuse_unless_strict
from worker.serving.tool_grammars import CallableFunction

MAX_TOOLS = 128  # OpenAI's limit.


class FunctionDefinition(Wire):
    name: SchemaName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Wire):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def callable_functions(tools: Sequence[Tool], choice: ToolChoice) -> list[CallableFunction]:
    """Return what may be called: nothing, everything, or the one function that is named.

    Raises:
        InvalidInput: naming the function at fault, or a choice that there is not.
    """
    if not tools and choice not in ("none", "auto"):
        raise InvalidInput("'tool_choice' needs 'tools' to choose from", param="tool_choice")
    functions: dict[str, CallableFunction] = {}
    for number, tool in enumerate(tools):
        function = _callable(tool.function, f"tools[{number}].function")
        if function.name in functions:
            param = f"tools[{number}].function.name"
            raise InvalidInput(f"'{param}' is that of an earlier function", param=param)
        functions[function.name] = function
    if choice == "none":
        return []
    if not isinstance(choice, NamedTool):
        return list(functions.values())
    if choice.function.name not in functions:
        raise InvalidInput(
            f"'tool_choice' names {choice.function.name!r}, which is not among 'tools'",
            param="tool_choice",
        )
    return [functions[choice.function.name]]


def _callable(definition: FunctionDefinition, param: str) -> CallableFunction:
    # Without parameters a function takes none.
    schema = definition.parameters
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    elif "type" not in schema:
        schema = {"type": "object", **schema}
    param = f"{param}.parameters"
    if schema["type"] != "object":
        raise InvalidInput(f"'{param}.type' must be 'object'", param=param)
    if definition.strict:
        refuse_unless_strict(schema, param)
    return CallableFunction(definition.name, schema, definition.strict, param)
