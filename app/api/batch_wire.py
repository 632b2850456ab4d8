"""The requests of a batch on the wire: each is checked by the type of the route that it names."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from app.api.answering import as_wire
from app.api.errors import envelope, told_by
from app.api.schemas.common import Request
from app.api.schemas.inference import CreateChatCompletionRequest, CreateCompletionRequest
from app.api.schemas.predictions import CreateEmbeddingRequest, CreatePredictionRequest
from app.api.schemas.response_requests import CreateResponseRequest
from app.api.schemas.scores import CreateScoreRequest
from app.api.wrong_fields import explain_validation
from app.domain.errors import DomainError, InvalidInput
from app.domain.task_routes import CHAT, COMPLETIONS, EMBEDDINGS, PREDICTIONS, RESPONSES, SCORES
from app.services.batches.wire import Line

T = TypeVar("T", bound=Request)

# What checks the requests of each endpoint in `app/services/batches/endpoints.py`: the type of its
# route.
REQUESTS: Final[Mapping[str, type[Request]]] = {
    CHAT: CreateChatCompletionRequest,
    COMPLETIONS: CreateCompletionRequest,
    EMBEDDINGS: CreateEmbeddingRequest,
    PREDICTIONS: CreatePredictionRequest,
    SCORES: CreateScoreRequest,
    RESPONSES: CreateResponseRequest,
}


# How JSON writes half of a character; two halves in a row are a whole one.
_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}|\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class BatchLine(Request):
    """One line of an input."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class OpenAIWire:
    """See `app.services.batches.wire.Wire`."""

    def parse(self, endpoint: str, number: int, raw: bytes) -> Line:
        value = _decoded(raw)
        line = _checked(BatchLine, value, at=())
        if line.url != endpoint:
            raise InvalidInput(
                f"Invalid 'url': expected {endpoint!r}, the endpoint of the batch, found "
                f"{line.url[:60]!r}.",
                param="url",
                code="invalid_url",
            )
        wire = as_wire(_checked(REQUESTS[endpoint], value, at=("body",)))
        if wire.pop("stream", False):
            raise InvalidInput(
                "Invalid 'body.stream': the answers of a batch cannot be streamed.",
                param="body.stream",
                code="unsupported_value",
            )
        return Line(number, line.custom_id, wire)

    def refusal(self, error: DomainError) -> tuple[int, dict[str, Any]]:
        return told_by(error)

    def failure(self) -> tuple[int, dict[str, Any]]:
        return 500, envelope("The server had an error.", "server_error")


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _invalid_json("it is not UTF-8") from None
    except ValueError as error:
        raise _invalid_json(str(error)) from None
    except RecursionError:
        raise _invalid_json("it is nested too deep") from None
    if not isinstance(value, dict):
        raise _invalid_json("a JSON object is expected")
    if _SURROGATE.search(raw) and not _is_encodable(value):
        raise InvalidInput("The line holds half of a character (a lone surrogate such as \\ud83d).")
    return value


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(kind: type[T], line: dict[str, Any], *, at: tuple[str, ...]) -> T:
    """Return the part of a line below `at` as a wire type. Raises: InvalidInput."""
    part: Any = line
    for name in at:
        part = part[name]
    try:
        return kind.model_validate(part)
    except ValidationError as error:
        # Located as if the line were the body of a request, which it is explained as.
        found = [
            {**one, "loc": ("body", *at, *one["loc"])} for one in error.errors(include_url=False)
        ]
    except InvalidInput as error:
        param_in_line = ".".join([*at, error.param or ""])
        raise InvalidInput(error.message, param=param_in_line, code=error.code) from None
    except RecursionError:
        raise _invalid_json("it is nested too deep") from None
    message, param, code = explain_validation(found, line, kind, at)
    raise InvalidInput(message, param=param, code=code)


def _invalid_json(reason: str) -> InvalidInput:
    return InvalidInput(f"The line is not valid JSON: {reason}.", code="invalid_json_line")
