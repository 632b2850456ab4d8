"""What an engine that speaks OpenAI's wire says when it does not answer, in domain words."""

import httpx

from app.domain.errors import (
    DomainError,
    EngineUnavailable,
    InvalidInput,
    TooManyRequests,
)
from app.inference.port import EngineTimeout, EngineUnreachable


async def read(response: httpx.Response) -> None:
    """Read a body to its end. Raises: EngineUnavailable."""
    try:
        await response.aread()
    except httpx.HTTPError as error:
        raise interrupted(error) from error


def unanswered(error: httpx.HTTPError) -> EngineUnavailable:
    """Return why there is no answer at all."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EngineUnreachable()
    return EngineTimeout() if isinstance(error, httpx.TimeoutException) else EngineUnavailable()


def interrupted(error: httpx.HTTPError) -> EngineUnavailable:
    """Return why an answer has no end."""
    if isinstance(error, httpx.TimeoutException):
        return EngineTimeout()
    return EngineUnavailable("The engine stopped in the middle of the answer.")


def refusal_of(response: httpx.Response) -> DomainError:
    """Return what a response without success means, whose body was read."""
    message, param, code = envelope_of(response)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return TooManyRequests(message, code=code, retry_after_seconds=_retry_after(response))
    if response.is_client_error and response.status_code not in (401, 403, 404, 408):
        return InvalidInput(message, param=param, code=code)
    # The caller's key and model were checked by us: what is left is ours to mend.
    return EngineUnavailable(f"The inference engine failed: {message}")


def envelope_of(response: httpx.Response) -> tuple[str, str | None, str | None]:
    """Return the message, the field and the code of a response without success."""
    try:
        error = response.json()["error"]
        code = error.get("code")
        return (
            str(error["message"]),
            error.get("param"),
            code if isinstance(code, str) else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"status {response.status_code}", None, None


def _retry_after(response: httpx.Response) -> int | None:
    """Return the seconds that the engine asks to wait; it may also name a date, or nothing."""
    text = response.headers.get("retry-after", "")
    return int(text) if text.isascii() and text.isdecimal() else None
