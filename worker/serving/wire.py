"""Requests in OpenAI's wire format, checked field by field.

A field that would change the answer and that this engine does not support is refused by name;
one that cannot change it (`user`, `metadata`, `service_tier` …) is accepted and left unread.
`null` means absent, as in OpenAI's interface.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from app.domain.ensembles import MAX_MEMBERS
from app.domain.errors import InvalidInput
from worker.generation.grammar import Grammar
from worker.generation.sampling import SamplingParameters
from worker.serving.body import Wire
from worker.serving.response_format import ResponseFormat
from worker.serving.tools import MAX_TOOLS, Tool, ToolChoice, callable_functions

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_SEQUENCES = 64  # Of one request: its prompts times `n`.

_INT64 = Field(ge=-(2**63), le=2**63 - 1)
_Text = Annotated[str, Field(min_length=1)]
# Each token's text is compared with every beginning of a stop string.
_StopString = Annotated[str, Field(min_length=1, max_length=1024)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool = False  # Pads chunks against eavesdropping; never done here.


class _Request(Wire):
    """What both endpoints have in common."""

    model: _Text
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: _StopString | Annotated[list[_StopString], Field(max_length=4)] = Field(
        default_factory=list,
        description="a string of 1 to 1024 characters, or a list of up to 4 of them",
    )
    seed: Annotated[int, _INT64] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict,
        max_length=1024,
        description="an object of up to 1024 token ids, each with a number from -100 to 100",
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Accepted and left unread: none of these can change the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] = Field(default=False, description="false: answers are not stored here")
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_stream_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(
        self,
        choice: int,
        vocab_size: int,
        top_logprobs: int | None,
        grammar: Grammar | None = None,
    ) -> SamplingParameters:
        """Return how one of the `n` choices is sampled: each has a seed of its own.

        Raises:
            InvalidInput: `logit_bias` names a token that does not exist.
        """
        return SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={_token_id(key, vocab_size): v for key, v in self.logit_bias.items()},
            top_logprobs=top_logprobs,
            grammar=grammar,
        )


class ChatRequest(_Request):
    """The body of `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = Field(
        default="auto",
        description="'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}",
    )
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat(type="text")
    modalities: list[Literal["text"]] | None = Field(
        default=None, description="['text']: nothing else is generated here"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidInput(
                "give 'max_completion_tokens' or 'max_tokens', not both", param="max_tokens"
            )
        if self.max_tokens == 0:
            raise InvalidInput("'max_tokens' must be at least 1", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        callable_functions(self.tools, self.tool_choice)
        return self

    @property
    def is_call_required(self) -> bool:
        return self.tool_choice not in ("none", "auto")

    @property
    def template_tools(self) -> list[dict[str, Any]]:
        """The functions that the prompt tells of, as chat templates take them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | _TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[_TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(
        description="a string, a list of token ids, or a list of up to 64 of either, none empty"
    )
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidInput("'max_tokens' must be at least 1 without 'echo'", param="max_tokens")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class AdapterMember(Wire):
    lora_path: _Text
    weight: Annotated[float, Field(gt=0, le=1)]


class AdapterLoad(Wire):
    """The body of `POST /v1/load_lora_adapter`.

    Attributes:
        lora_members: what the adapter is the weighted mean of, if it is one. vLLM has no such
            field, and not the next.
        prefetch: nobody waits for it yet.
    """

    lora_name: Annotated[str, Field(min_length=1, max_length=512)]
    lora_path: _Text
    lora_members: list[AdapterMember] = Field(default_factory=list, max_length=MAX_MEMBERS)
    prefetch: bool = False


class AdapterUnload(Wire):
    """The body of `POST /v1/unload_lora_adapter`."""

    lora_name: _Text
    lora_int_id: int | None = None  # vLLM's, which it does not read either.


def _token_id(key: str, vocab_size: int) -> int:
    if key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size:
        return int(key)
    raise InvalidInput(
        f"'logit_bias' has the key {key[:40]!r}; expected token ids below {vocab_size}",
        param="logit_bias",
    )
