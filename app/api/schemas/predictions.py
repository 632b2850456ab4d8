"""Wire types of predictions, which are ours, and of embeddings, which are OpenAI's.

What an input and a prediction look like is known from the task of the model: both have the shapes
of Hugging Face's pipelines.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.api.schemas.common import ListObject, Request, Response, Text
from app.domain.errors import InvalidInput

MAX_INPUTS = 256
MAX_TEXTS = 2048

_Model = Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]


def _one_or_several(inputs: Any) -> Any:
    if inputs is None or (isinstance(inputs, list) and not 0 < len(inputs) <= MAX_INPUTS):
        raise ValueError(f"one input, or a list of 1 to {MAX_INPUTS} inputs")
    return inputs


def _at_least_one(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Check what is the same for all tasks that know it; the rest, an engine knows.

    Raises:
        InvalidInput: unlike a ValueError, it names the part.
    """
    top_k = (parameters or {}).get("top_k")
    if isinstance(top_k, int | float) and top_k < 1:
        name = "parameters.top_k"
        message = f"Invalid {name!r}: expected at least 1, found {top_k!r}."
        raise InvalidInput(message, param=name, code="invalid_value")
    return parameters


class CreatePredictionRequest(Request):
    """What a model is to predict for."""

    model: _Model
    inputs: Annotated[
        Any,
        AfterValidator(_one_or_several),
        Field(
            description=f"One input, or a list of up to {MAX_INPUTS}, as the Hugging Face pipeline "
            "of the model's task takes them. Text classification: a text, or an object with "
            "`text` and `text_pair`. Question answering: an object with `question` and "
            "`context`. Images and audio: a data URL in base64."
        ),
    ]
    parameters: Annotated[
        dict[str, Any] | None,
        AfterValidator(_at_least_one),
        Field(description="What the pipeline of the task takes beside inputs, such as `top_k`."),
    ] = None


class PredictionUsage(Response):
    inputs: int
    input_tokens: Annotated[
        int, Field(description="Tokens of all inputs; for media what compares to them.")
    ]


class Prediction(Response):
    """What a model predicts, input by input."""

    id: str
    object: Literal["prediction"]
    created: int
    model: str
    task: Annotated[str, Field(description="The name of the Hugging Face pipeline.")]
    predictions: Annotated[
        list[Any], Field(description="One for each input, as the pipeline returns it.")
    ]
    truncated_inputs: Annotated[
        list[int],
        Field(description="Numbers of the inputs that were longer than the model takes: cut."),
    ]
    usage: PredictionUsage


class CreateEmbeddingRequest(Request):
    """Texts to embed. `dimensions` may only be what the model has; `user` changes nothing."""

    model: _Model
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class Embedding(Response):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[
        list[float] | str,
        Field(description="The vector; in base64 its numbers are little-endian float32."),
    ]


class EmbeddingUsage(Response):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Response):
    """The vectors of texts, in the order of the texts."""

    object: ListObject
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


EXAMPLE_PREDICTION = {
    "model": "ft:all-minilm-l6-v2:acme:reviews:abc123",
    "inputs": ["A film that I will see again.", "Two hours that I want back."],
    "parameters": {"top_k": 1},
}
EXAMPLE_EMBEDDING = {"model": "all-minilm-l6-v2", "input": "My parcel has not arrived."}
