"""The one place that knows both domain errors and HTTP, and OpenAI's error envelope."""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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


def response_of(error: errors.DomainError) -> JSONResponse:
    """Return the response that an error is told by."""
    status, type_ = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    body = envelope(error.message, type_, error.param, error.code)
    return JSONResponse(body, status, headers=RETRY_HEADERS.get(status))


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
    message, param, code = explain_validation(error.errors(), error.body)
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


def explain_validation(
    found: Sequence[Mapping[str, Any]], body: Any
) -> tuple[str, str | None, str | None]:
    """Turn pydantic's errors into one sentence, the field at fault, and a code.

    Only the first field is told about; all the alternatives that it could have been are.
    """
    if found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return f"The body is not valid JSON: {reason}.", None, "invalid_json"
    if tuple(found[0]["loc"]) == ("body",) and found[0]["type"] not in ("missing", "value_error"):
        message = "Expected a JSON object as the body, sent as application/json."
        return message, "body", "invalid_value"
    # An unknown field is the likeliest reason for whatever else is wrong with its neighbours.
    first = next((error for error in found if error["type"] == "extra_forbidden"), found[0])
    path = _path(first, body)
    same = [error for error in found if _path(error, body) == path]
    if first["type"] == "extra_forbidden":
        return (
            f"Unknown field {path!r}: nothing by this name is supported.",
            path,
            "unknown_field",
        )
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        path = f"{path}.{context['discriminator'].strip(chr(39))}"
        expected, tag = context["expected_tags"], context["tag"]
        return f"Invalid {path!r}: expected {expected}, found {_shown(tag)}.", path, "invalid_value"
    if first["type"] == "union_tag_not_found":
        path = f"{path}.{first['ctx']['discriminator'].strip(chr(39))}"
        return f"Missing required field {path!r}.", path, "missing_required_field"
    if all(error["type"] == "missing" for error in same):
        return f"Missing required field {path!r}.", path, "missing_required_field"
    expected = " or ".join(dict.fromkeys(_expectation(error["msg"]) for error in same))
    return (
        f"Invalid {path!r}: expected {expected}, found {_shown(first.get('input'))}.",
        path,
        "invalid_value",
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(error: Mapping[str, Any], body: Any) -> str:
    """Return the dotted path of a field, without the union members that pydantic names in it."""
    location = list(error["loc"])
    if location and location[0] in ("body", "query", "path", "header"):
        is_body = location.pop(0) == "body"
        if not is_body:
            return ".".join(str(part) for part in location)
    parts: list[str] = []
    value = body
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            parts[-1:] = [f"{parts[-1]}[{part}]"] if parts else [f"[{part}]"]
            continue
        elif not (is_last and error["type"] in ("missing", "extra_forbidden")):
            continue
        parts.append(str(part)[:64])
    return ".".join(parts) or "body"


def _expectation(message: str) -> str:
    for start, instead in _EXPECTATIONS.items():
        if message.startswith(start):
            message = instead + message.removeprefix(start)
    return message[:1].lower() + message[1:]


# How pydantic begins its messages, and how a sentence with "expected" goes on instead.
_EXPECTATIONS = {
    "Input should be ": "",
    "Value error, ": "",
    "String should ": "a string to ",
    "List should ": "a list to ",
    "Dictionary should ": "an object to ",
}
