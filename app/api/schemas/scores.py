"""Wire types of scores of pairs of texts, which are vLLM's."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Request, Response, Text

MAX_PAIRS = 2048

_Text = Annotated[str, Field(min_length=1)]
_Texts = _Text | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PAIRS)]


class ScoreOptions(Request):
    label: Annotated[
        str | None,
        Field(
            description="Whose probability is the score. Of two labels it is the second, if none "
            "is named; of more one has to be."
        ),
    ] = None


class CreateScoreRequest(Request):
    """Pairs of texts: each of `text_1` with its neighbour in `text_2`, or one with them all."""

    model: Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]
    text_1: _Texts
    text_2: _Texts
    user: str | None = None
    tunesmith: ScoreOptions | None = None


class Score(Response):
    object: Literal["score"]
    index: int
    score: float


class ScoreUsage(Response):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class ScoreList(Response):
    """The scores of pairs, in their order."""

    id: str
    object: ListObject
    created: int
    model: str
    data: list[Score]
    usage: ScoreUsage


EXAMPLE_SCORE = {
    "model": "all-minilm-l6-v2",
    "text_1": "My parcel has not arrived.",
    "text_2": ["Where is my delivery?", "I forgot my password."],
}
