"""Requests for predictions, in our own form, and for embeddings, in OpenAI's."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from app.domain.errors import InvalidInput
from worker.serving.body import Wire

MAX_INPUTS = 256
MAX_TEXTS = 2048  # OpenAI's limit.

_Text = Annotated[str, Field(min_length=1)]


class PredictionRequest(Wire):
    """The body of `POST /v1/predictions`; what an input may be, its model's task says."""

    model: _Text
    inputs: Any
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="an object of the task's parameters"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.inputs, list) and not 0 < len(self.inputs) <= MAX_INPUTS:
            raise InvalidInput(
                f"'inputs' must be one input, or a list of 1 to {MAX_INPUTS}", param="inputs"
            )
        return self

    @property
    def all_inputs(self) -> list[Any]:
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    def name_of(self, number: int) -> str:
        return f"inputs[{number}]" if isinstance(self.inputs, list) else "inputs"


class EmbeddingRequest(Wire):
    """The body of `POST /v1/embeddings`."""

    model: _Text
    input: _Text | Annotated[list[_Text], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        description=f"a text, or a list of up to {MAX_TEXTS} texts, none empty; token ids are not "
        "supported",
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="'float' or 'base64'"
    )
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None  # Accepted and left unread.

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    def name_of(self, number: int) -> str:
        return "input" if isinstance(self.input, str) else f"input[{number}]"
