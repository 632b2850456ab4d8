"""Wire types of requests to `/v1/responses`: the part of OpenAI's that needs no memory."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema

from app.api.schemas.answer_forms import NAME_PATTERN, JsonObjectFormat, JsonSchema, TextFormat
from app.api.schemas.common import Metadata, PartialRequest, Request, Text
from app.domain.unsupported_fields import (
    RESPONSE_CALL_FIELDS,
    RESPONSE_FIELDS,
    RESPONSE_MESSAGE_FIELDS,
    RESPONSE_TEXT_FIELDS,
)


def _one_of(value: str) -> WithJsonSchema:
    """Describe a constant as an `enum`, which generated clients can run beside an alternative."""
    return WithJsonSchema({"type": "string", "enum": [value]})


class ResponseInputText(Request):
    type: Literal["input_text"]
    text: str


class ResponseOutputText(Request):
    """What the model said before, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


# So that what is wrong with a part is told by its path, and not that a string was expected.
_text_or_parts = Discriminator(lambda value: "text" if isinstance(value, str) else "parts")

_Text = Annotated[str, Tag("text")]
_Parts = Annotated[
    list[Annotated[ResponseInputText | ResponseOutputText, Field(discriminator="type")]],
    Tag("parts"),
]

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputMessage(PartialRequest):
    """A turn; `type` may be left out."""

    unsupported = RESPONSE_MESSAGE_FIELDS

    type: Annotated[Literal["message"], _one_of("message")] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[_Text | _Parts, _text_or_parts]
    id: str | None = None
    status: ItemStatus | None = None


class InputFunctionCall(PartialRequest):
    """A call that the model made before."""

    unsupported = RESPONSE_CALL_FIELDS

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCallOutput(Request):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[_Text | Annotated[list[ResponseInputText], Tag("parts")], _text_or_parts]
    id: str | None = None
    status: ItemStatus | None = None


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind or "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputFunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="Input should be a message, a function_call or a function_call_output",
    ),
]


class ResponseFunction(Request):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Request):
    """One function, which the response is a call of."""

    type: Literal["function"]
    name: str


class ResponseJsonSchema(JsonSchema):
    """JSON that follows a schema."""

    type: Literal["json_schema"]


class ResponseText(PartialRequest):
    unsupported = RESPONSE_TEXT_FIELDS

    format: (
        Annotated[TextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")]
        | None
    ) = None


class ResponseStreamOptions(Request):
    include_obfuscation: bool = False


class CreateResponseRequest(PartialRequest):
    """What to respond to. Nothing is stored, so that each request holds all that came before."""

    unsupported = RESPONSE_FIELDS

    model: Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]
    input: Annotated[
        _Text | Annotated[list[InputItem], Field(min_length=1), Tag("parts")], _text_or_parts
    ]
    instructions: Annotated[
        str | None, Field(description="Goes before the input, as a system message.")
    ] = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ResponseFunction], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: Metadata | None = None
    user: str | None = None
    store: Annotated[
        Literal[False] | None,
        WithJsonSchema({"type": "boolean"}),
        Field(description="Responses are never stored: false, which is also what absence means."),
    ] = None
    background: Annotated[Literal[False] | None, WithJsonSchema({"type": "boolean"})] = None
    truncation: Annotated[
        Annotated[Literal["disabled"], _one_of("disabled")] | None,
        Field(description="An input that is too long is refused, never cut."),
    ] = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


EXAMPLE_RESPONSE = {
    "model": "smollm2-135m-instruct",
    "input": "My parcel has not arrived. What now?",
    "max_output_tokens": 64,
}
