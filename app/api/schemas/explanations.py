"""Wire types of explanations: what each token adds to a score."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import Request, Response, Text

MAX_INPUTS = 16


class TextPair(Request):
    text: str
    text_pair: str | None = None


_Input = str | TextPair


class ExplanationParameters(Request):
    """What is explained, and how finely."""

    target: Annotated[
        Text | None,
        Field(description="The label whose score is explained; null is the one predicted."),
    ] = None
    steps: Annotated[
        int,
        Field(ge=20, le=200, description="Points on the path from the baseline to the input."),
    ] = 50
    internal_batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=200,
            description="Steps that are computed at once, at most; changes no result.",
        ),
    ] = None


class CreateExplanationRequest(Request):
    """Predictions of which model are explained, for which texts."""

    model: Annotated[
        Text, Field(min_length=1, description="A model fine-tuned for text-classification.")
    ]
    inputs: Annotated[
        _Input | Annotated[list[_Input], Field(min_length=1, max_length=MAX_INPUTS)],
        Field(
            description=f"A text, a pair of texts (`text` and `text_pair`), or a list of up to "
            f"{MAX_INPUTS} of either."
        ),
    ]
    parameters: ExplanationParameters | None = None


class TokenAttribution(Response):
    """What one token adds to the score."""

    token: str
    field: Annotated[
        Literal["text", "text_pair"], Field(description="Which of the two texts it is in.")
    ]
    start: Annotated[int, Field(description="Of the token in that text, in code points.")]
    end: int
    attribution: float


class InputExplanation(Response):
    """Why a label has its score: all attributions make `score - baseline_score` together."""

    label: Annotated[str, Field(description="`score` for a model that predicts a number.")]
    score: float
    baseline_score: Annotated[
        float, Field(description="With padding in place of every token but the special ones.")
    ]
    attributions: list[TokenAttribution]
    convergence_delta: Annotated[
        float,
        Field(description="By how much the sum is wrong; more `steps` make it smaller."),
    ]


class ExplanationUsage(Response):
    inputs: int
    input_tokens: int


class Explanation(Response):
    """Explanations, input by input."""

    id: str
    object: Literal["explanation"]
    created: int
    model: str
    task: str
    explanations: list[InputExplanation]
    truncated_inputs: Annotated[
        list[int],
        Field(description="Numbers of the inputs that were longer than the model takes: cut."),
    ]
    usage: ExplanationUsage


EXAMPLE_EXPLANATION = {
    "model": "ft:all-minilm-l6-v2:acme:reviews:abc123",
    "inputs": "A film that I will see again.",
    "parameters": {"target": "positive"},
}
