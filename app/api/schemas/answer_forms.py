"""Wire types of what an answer may be: functions that it may call, and the form of its text."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Request

NAME_PATTERN = "^[a-zA-Z0-9_-]{1,64}$"


class FunctionDefinition(Request):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None,
        Field(description="A JSON Schema of an object; without it, the function takes nothing."),
    ] = None
    strict: Annotated[
        bool | None,
        Field(
            description="Whether arguments follow all of the schema, which then has to keep "
            "OpenAI's rules for strict ones. Otherwise only calls that are required are held to "
            "it, as far as it can be enforced."
        ),
    ] = None


class Tool(Request):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Request):
    name: str


class NamedTool(Request):
    """One function, which the answer is a call of."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Request):
    """Text of any form."""

    type: Literal["text"]


class JsonObjectFormat(Request):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Request):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    definition: Annotated[
        dict[str, Any],
        Field(
            alias="schema",
            description="A JSON Schema, which the answer follows whether it is `strict` or not. "
            "One that cannot be enforced is refused.",
        ),
    ]
    strict: Annotated[
        bool | None,
        Field(
            description="Whether the schema keeps OpenAI's rules for strict ones: objects allow no "
            "property that they do not name, and require all that they do."
        ),
    ] = None


class JsonSchemaFormat(Request):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
