"""Wire types of the messages that a conversation consists of."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.api.schemas.common import PartialRequest, Request
from app.domain.unsupported_fields import ASSISTANT_FIELDS


class TextPart(Request):
    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class FunctionCall(Request):
    name: str
    arguments: str


class ToolCall(Request):
    id: str
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(Request):
    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(Request):
    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(Request):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(PartialRequest):
    # An answer comes back as the client writes it.
    unsupported = ASSISTANT_FIELDS

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_no_annotations(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("annotations") == []:
            return {name: value for name, value in given.items() if name != "annotations"}
        return given


class ToolMessage(Request):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]
