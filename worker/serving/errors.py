"""Errors in OpenAI's envelope, with all four keys. The one place that knows their HTTP status."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.domain.errors import (
    DomainError,
    InvalidInput,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from worker.serving.responses import json_response

_STATUS: tuple[tuple[type[DomainError], int, str], ...] = (
    (InvalidInput, 400, "invalid_request_error"),
    (Unauthenticated, 401, "invalid_request_error"),
    (NotFound, 404, "invalid_request_error"),
    (TooLarge, 413, "invalid_request_error"),
    (TooManyRequests, 429, "rate_limit_error"),
    (Unavailable, 503, "server_error"),
)


def envelope(error: DomainError) -> dict[str, Any]:
    """Return the body that describes an error."""
    _, name = _status(error)
    return _envelope(error.message, name, error.param, error.code)


def answer_domain_error(request: Request, error: Exception) -> Response:
    """Answer with the status of a domain error."""
    assert isinstance(error, DomainError)
    status, _ = _status(error)
    headers = {}
    if isinstance(error, TooManyRequests) and error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    return json_response(envelope(error), status, headers)


def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses: no such route, no such method."""
    assert isinstance(error, HTTPException)
    body = _envelope(error.detail, "invalid_request_error", None, None)
    return json_response(body, error.status_code, error.headers)


def answer_unexpected_error(request: Request, error: Exception) -> Response:
    """Answer a defect of ours; the server logs its traceback."""
    return json_response(_envelope("The engine failed.", "server_error", None, None), 500)


def _status(error: DomainError) -> tuple[int, str]:
    for domain_error, status, name in _STATUS:
        if isinstance(error, domain_error):
            return status, name
    return 500, "server_error"


def _envelope(message: str, name: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": name, "param": param, "code": code}}
