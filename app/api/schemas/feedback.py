"""Wire types of feedback on answers."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Metadata, Request, Response, Text
from app.db.repositories.feedback import Feedback


class CreateFeedbackRequest(Request):
    """What is thought of an answer that an alias gave."""

    completion_id: Annotated[
        Text, Field(min_length=1, max_length=255, description="The `id` of the answer.")
    ]
    score: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            allow_inf_nan=False,
            description="The higher, the better; only means are compared, so that -1 to 1 and 0 "
            "to 1 serve alike.",
        ),
    ]
    comment: Annotated[Text, Field(max_length=4_000)] | None = None
    metadata: Metadata | None = None


class FeedbackObject(Response):
    """What was thought of an answer, credited to the version that gave it."""

    id: str
    object: Literal["feedback"] = "feedback"
    created_at: int
    completion_id: str
    model: Annotated[str, Field(description="The version that gave the answer.")]
    revision: Annotated[int, Field(description="Of the alias, when it was asked.")]
    score: float
    comment: str | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, feedback: Feedback) -> "FeedbackObject":
        return cls(
            id=feedback.id,
            created_at=int(feedback.created_at),
            completion_id=feedback.answer_id,
            model=feedback.model,
            revision=feedback.revision,
            score=feedback.score,
            comment=feedback.comment,
            metadata=feedback.metadata,
        )


class FeedbackList(Response):
    object: ListObject = "list"
    data: list[FeedbackObject]
    has_more: bool


EXAMPLE_FEEDBACK = {"completion_id": "chatcmpl-abc123", "score": 1, "comment": "That helped."}
