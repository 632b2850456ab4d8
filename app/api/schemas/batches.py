"""Wire types of batches, which are OpenAI's."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from app.api.schemas.common import ListObject, Metadata, Request, Response, Text
from app.db.repositories.batches import Batch
from app.domain.batches import BatchStatus
from app.services.batches.endpoints import ENDPOINTS
from app.services.batches.requests import BatchRequest


def _known(endpoint: str) -> str:
    if endpoint not in ENDPOINTS:
        raise ValueError(" or ".join(repr(one) for one in ENDPOINTS))
    return endpoint


_Endpoint = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)}),
]
_Window = Annotated[Literal["24h"], WithJsonSchema({"type": "string", "enum": ["24h"]})]
_Anchor = Annotated[
    Literal["created_at"], WithJsonSchema({"type": "string", "enum": ["created_at"]})
]


class OutputExpiresAfter(Request):
    """When the files of the answers and of the errors expire."""

    anchor: _Anchor
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class CreateBatchRequest(Request):
    """Requests to answer when there is time."""

    input_file_id: Annotated[
        Text,
        Field(
            min_length=1,
            description="A file of purpose `batch`: JSON lines with `custom_id`, `method` (POST), "
            "`url` (the endpoint) and `body`. At most 50,000 lines and 200 MB.",
        ),
    ]
    endpoint: Annotated[_Endpoint, Field(description="Where all of its requests go.")]
    completion_window: Annotated[
        _Window, Field(description="What is not answered by then is given up.")
    ]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None

    def to_domain(self) -> BatchRequest:
        expiry = self.output_expires_after
        return BatchRequest(
            endpoint=self.endpoint,
            completion_window=self.completion_window,
            input_file_id=self.input_file_id,
            output_expires_after_seconds=expiry.seconds if expiry else None,
            metadata=self.metadata,
        )


class BatchErrorDetail(Response):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(Response):
    """What is wrong with the input, line by line."""

    object: ListObject = "list"
    data: list[BatchErrorDetail]


class BatchRequestCounts(Response):
    total: int
    completed: int
    failed: int


class BatchInputTokens(Response):
    cached_tokens: int


class BatchOutputTokens(Response):
    reasoning_tokens: int


class BatchUsage(Response):
    """Tokens of all answers so far."""

    input_tokens: int
    input_tokens_details: BatchInputTokens
    output_tokens: int
    output_tokens_details: BatchOutputTokens
    total_tokens: int


class BatchObject(Response):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: Annotated[str | None, Field(description="If all requests name the same.")]
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> "BatchObject":
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=_errors(batch),
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=int(batch.created_at),
            in_progress_at=_seconds(batch.in_progress_at),
            expires_at=int(batch.expires_at),
            finalizing_at=_seconds(batch.finalizing_at),
            completed_at=_seconds(batch.completed_at),
            failed_at=_seconds(batch.failed_at),
            expired_at=_seconds(batch.expired_at),
            cancelling_at=_seconds(batch.cancelling_at),
            cancelled_at=_seconds(batch.cancelled_at),
            request_counts=BatchRequestCounts(
                total=batch.line_count,
                completed=batch.completed_lines,
                failed=batch.failed_lines,
            ),
            usage=BatchUsage(
                input_tokens=batch.input_tokens,
                input_tokens_details=BatchInputTokens(cached_tokens=batch.cached_tokens),
                output_tokens=batch.output_tokens,
                output_tokens_details=BatchOutputTokens(reasoning_tokens=batch.reasoning_tokens),
                total_tokens=batch.input_tokens + batch.output_tokens,
            ),
            metadata=batch.metadata,
        )


class BatchList(Response):
    object: ListObject = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


EXAMPLE_BATCH = {
    "input_file_id": "file-abc123",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


def _errors(batch: Batch) -> BatchErrors | None:
    if batch.errors is None:
        return None
    return BatchErrors(
        data=[
            BatchErrorDetail(code=one.code, line=one.line, message=one.message, param=one.param)
            for one in batch.errors
        ]
    )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
