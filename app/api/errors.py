"""The one place that knows both domain errors and HTTP, and OpenAI's error envelope."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.wrong_fields import explain_validation
from app.domain import errors

_log = logging.getLogger("tunesmith.api")

# The first match along an error's ancestry counts.
STATUS: Mapping[type[Exception], tuple[int, str]] = {
    errors.InvalidInput: (400, "invalid_request_error"),
    # OpenAI's client repeats a request that got 409; an invalid move must not be repeated.
    errors.Conflict: (400, "invalid_request_error"),
    errors.Unauthenticated: (401, "invalid_request_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.RequestInFlight: (409, "invalid_request_error"),
    errors.TooLarge: (413, "invalid_request_error"),
    errors.IdempotencyKeyReused: (422, "invalid_request_error"),
    errors.TooManyRequests: (429, "rate_limit_error"),
    errors.Unavailable: (503, "server_error"),
    errors.ModelDamaged: (500, "server_error"),
    errors.DomainError: (500, "server_error"),
}

_IN_A_MOMENT = {"Retry-After": "2"}

# What tells a client to repeat its request, and when.
RETRY_HEADERS: Mapping[int, Mapping[str, str]] = {
    # OpenAI's client repeats twice: together longer than the claim of a killed API lasts.
    409: {"Retry-After": "6", "x-should-retry": "true"},
    429: _IN_A_MOMENT,
    # A domain error with this status would only come again.
    500: {"x-should-retry": "false"},
    503: _IN_A_MOMENT,
}


def envelope(
    message: str, type_: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error body; all four keys are always there."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def told_by(error: errors.DomainError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body that an error is told by."""
    status, type_ = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return status, envelope(error.message, type_, error.param, error.code)


def response_of(error: errors.DomainError) -> JSONResponse:
    """Return the response that an error is told by."""
    status, body = told_by(error)
    headers = dict(RETRY_HEADERS.get(status, {}))
    if isinstance(error, errors.TooManyRequests) and error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return JSONResponse(body, status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(errors.DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(Exception, _unexpected)


async def _domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.DomainError)
    if not isinstance(error, tuple(kind for kind in STATUS if kind is not errors.DomainError)):
        _log.exception("unmapped error", exc_info=error)
    return response_of(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    field = getattr(request.scope.get("route"), "body_field", None)
    expected = field.field_info.annotation if field is not None else None
    message, param, code = explain_validation(error.errors(), error.body, expected)
    return JSONResponse(envelope(message, "invalid_request_error", param, code), 400)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if _is_disk_full(error.__cause__):  # Where an upload is kept while it arrives.
        return response_of(errors.StorageFull())
    message = str(error.detail)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path}"
    if error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}"
    return JSONResponse(
        envelope(message, "invalid_request_error"),
        error.status_code,
        headers=error.headers,
    )


async def _half_a_character(request: Request, error: Exception) -> JSONResponse:
    # JSON can write a lone surrogate, which no text that leaves us can hold.
    message = "The request holds half of a character (a lone surrogate such as \\ud83d)."
    return JSONResponse(envelope(message, "invalid_request_error", None, "invalid_value"), 400)


async def _os_error(request: Request, error: Exception) -> JSONResponse:
    if _is_disk_full(error):
        return response_of(errors.StorageFull())
    return await _unexpected(request, error)


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette logs the traceback; the caller gets the request id to quote.
    request_id = request.scope.get("state", {}).get("request_id", "")
    return JSONResponse(
        envelope(f"The server had an error. Request id: {request_id}", "server_error"),
        500,
        # This response is made outside of the middleware that adds it to all others.
        headers={"x-request-id": request_id},
    )
