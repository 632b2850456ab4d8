"""Authentication of the engine's one caller, the API."""

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.errors import Unauthenticated
from worker.serving.errors import envelope
from worker.serving.responses import json_response

# What a load balancer or launcher asks for without a key.
_OPEN_PATHS = frozenset({"/health"})


class BearerAuthentication:
    """Refuse every request without the key, except for health; without a key, refuse none."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if self._expected is not None and not hmac.compare_digest(given, self._expected):
                response = json_response(envelope(Unauthenticated()), 401)
                return await response(scope, receive, send)
        await self._app(scope, receive, send)
