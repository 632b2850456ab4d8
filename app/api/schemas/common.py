"""Bases and shapes that all wire types share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from app.domain.storable import check_storable


class Request(BaseModel):
    """A request body: an unknown field is refused by name, never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PartialRequest(Request):
    """A request, or a part of one, that lacks fields of OpenAI's; null is as if they were absent.

    Attributes:
        unsupported: fields that OpenAI's object of this name has, and this one has not.
    """

    unsupported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        absent = {name for name in cls.unsupported if name in given and given[name] is None}
        return {name: value for name, value in given.items() if name not in absent}


class Response(BaseModel):
    """A response body: every field is always there, null where it has no value."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Response):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Response):
    """OpenAI's error envelope."""

    error: ErrorDetail


# Text that reaches the database, which on Postgres cannot hold a NUL.
Text = Annotated[str, AfterValidator(check_storable)]

Metadata = Annotated[
    dict[
        Annotated[Text, StringConstraints(min_length=1, max_length=64)],
        Annotated[Text, StringConstraints(max_length=512)],
    ],
    Field(
        max_length=16,
        description="Up to 16 pairs of your own, by which jobs can be listed.",
    ),
]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: what it can fail with besides a missing key."""
    told = {
        400: "The request is not valid; `param` names the field, the message the line.",
        401: "No valid API key.",
        404: "No such object in this project.",
        409: "A request with this `Idempotency-Key` is still being answered; try again.",
        413: "The upload is too large.",
        422: "This `Idempotency-Key` was used for another request.",
        429: "Too many requests are waiting.",
        503: "A part of the service is not available right now.",
    }
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": told[status]} for status in (401, *statuses)
    }
    # Named, or FastAPI would document its own 422, which never comes.
    return documented | {"4XX": {"model": ErrorResponse, "description": "Any other mistake."}}


ListObject = Literal["list"]
