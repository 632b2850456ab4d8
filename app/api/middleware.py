"""What every request passes through before its route: an id, a limit of size, and a key."""

import secrets
import time
from collections.abc import Callable

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import response_of
from app.db.repositories.keys import Principal
from app.domain.errors import DomainError, TooLarge


class RequestIds:
    """Puts `x-request-id` and `openai-processing-ms` on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never the caller's own id: it could be another request's.
        request_id = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(int((time.monotonic() - started) * 1000))
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies larger than a route takes, counted as they arrive.

    Args:
        max_bytes: for every path but those of `uploads`.
        uploads: limits of paths that take files.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: dict[str, int]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], self._max_bytes)
        error = response_of(TooLarge(f"The request body is larger than {limit:,} bytes."))
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await error(scope, receive, send)
            return
        received = 0
        is_over = has_started = False

        async def receive_counted() -> Message:
            nonlocal received, is_over
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                is_over = True
                raise ClientDisconnect
            return message

        async def send_unless_over(message: Message) -> None:
            nonlocal has_started
            if is_over and not has_started:
                return
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive_counted, send_unless_over)
        except ClientDisconnect:
            if not is_over:
                raise
        if is_over and not has_started:
            await error(scope, receive, send)


class Authentication:
    """Lets nothing under `/v1` through without a key, before any of the body is read."""

    def __init__(self, app: ASGIApp, authenticate: Callable[[str | None], Principal]) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_protected(scope["path"]):
            await self._app(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            principal = await run_in_threadpool(
                self._authenticate, key.strip() if scheme.lower() == "bearer" else None
            )
        except DomainError as error:
            await response_of(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def _is_protected(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")
