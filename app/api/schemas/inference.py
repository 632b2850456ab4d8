"""Wire types of chat completions and completions.

They say what a request may hold; whether the engine at hand can do it, the engine says.
"""

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from app.api.schemas.answer_forms import NamedTool, ResponseFormat, Tool
from app.api.schemas.chat_messages import ChatMessage
from app.api.schemas.common import Metadata, PartialRequest, Request, Response, Text
from app.domain.unsupported_fields import CHAT_FIELDS, COMPLETION_FIELDS


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Generation(PartialRequest):
    """What both endpoints take."""

    model: Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class CreateChatCompletionRequest(_Generation):
    """A conversation to continue."""

    unsupported = CHAT_FIELDS

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(deprecated="Use max_completion_tokens.")
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedTool | None,
        Field(
            description="Whether functions are called: as the model sees fit, some, or this one."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None,
        Field(description="Whether an answer may have several calls: it may, unless false."),
    ] = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: Metadata | None = None
    store: Annotated[Literal[False], WithJsonSchema({"type": "boolean"})] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CreateCompletionRequest(_Generation):
    """A text to continue."""

    unsupported = COMPLETION_FIELDS

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None


class PromptTokensDetails(Response):
    cached_tokens: Annotated[
        int, Field(description="Tokens that earlier requests of the project had computed.")
    ]


class Usage(Response):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class TopLogprob(Response):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Response):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class CalledFunction(Response):
    name: str
    arguments: Annotated[str, Field(description="A JSON text.")]


class AnsweredCall(Response):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Response):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: Annotated[
        list[AnsweredCall] | None, Field(description="There only if functions are called.")
    ] = None


class ChatChoice(Response):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Response):
    """An answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None


class CalledFunctionDelta(Response):
    name: str | None = None
    arguments: str | None = None


class CallDelta(Response):
    """A part of a call: its id and name in the first, its arguments piece by piece after it."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class AnswerDelta(Response):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(Response):
    index: int
    delta: AnswerDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Response):
    """A piece of a streamed answer; the stream ends with `data: [DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None


class CompletionLogprobs(Response):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Response):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class Completion(Response):
    """A continued text, or a piece of one when streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None
    system_fingerprint: str | None


EXAMPLE_CHAT = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "My parcel has not arrived. What now?"}],
    "max_completion_tokens": 64,
}
EXAMPLE_COMPLETION = {
    "model": "smollm2-135m-instruct",
    "prompt": "Once upon",
    "max_tokens": 16,
}
