"""The client of an engine over HTTP: the built-in one, or a vLLM server in its place.

Both speak OpenAI's wire and vLLM's `/v1/load_lora_adapter`. A vLLM server must run with
`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, `--served-model-name` set to the catalogue's
id of its base model, and the adapters' storage mounted at the same path.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from app.domain.errors import (
    DomainError,
    EngineUnavailable,
    InvalidInput,
    ModelDamaged,
    TooManyRequests,
)
from app.inference.port import AdapterFiles, EventStream, Route
from app.settings import Settings

_log = logging.getLogger("tunesmith.inference")

_LOAD = "/v1/load_lora_adapter"
_UNLOAD = "/v1/unload_lora_adapter"


def open_builtin(settings: Settings) -> "OpenAIHTTPEngine":
    return OpenAIHTTPEngine(_http_client(settings))


def open_vllm(settings: Settings) -> "OpenAIHTTPEngine":
    # vLLM answers 400 to a second load of one name, which for immutable names is success.
    return OpenAIHTTPEngine(
        _http_client(settings),
        loaded_already="already been loaded",
        missing={
            "/v1/predictions": "Predictions need the built-in engine (ENGINE_KIND=builtin): a vLLM "
            "server cannot load adapters with a head.",
            "/v1/explanations": "Explanations need the built-in engine (ENGINE_KIND=builtin).",
        },
        has_means=False,
    )


class OpenAIHTTPEngine:
    """See `port.EngineClient`.

    Args:
        loaded_already: the words in a 400 that mean the adapter is there.
        missing: why the server does not answer on some routes.
        has_means: whether it takes means of adapters.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        loaded_already: str | None = None,
        missing: Mapping[Route, str] | None = None,
        *,
        has_means: bool = True,
    ) -> None:
        self._client = client
        self._loaded_already = loaded_already
        self._missing = missing or {}
        self._has_means = has_means
        self._loaded: set[str] = set()

    async def complete(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None
    ) -> dict[str, Any]:
        response = await self._send(route, body, adapter)
        try:
            await _read(response)
            answer: dict[str, Any] = response.json()
            return answer
        finally:
            await response.aclose()

    async def stream(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None
    ) -> EventStream:
        return _Events(await self._send(route, body, adapter))

    async def forget(self, adapter_name: str) -> None:
        self._loaded.discard(adapter_name)
        with suppress(httpx.HTTPError):
            await self._client.post(_UNLOAD, json={"lora_name": adapter_name})

    async def is_ready(self) -> bool:
        try:
            return (await self._client.get("/health", timeout=2)).is_success
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None
    ) -> httpx.Response:
        """Return a successful response whose body is still to be read."""
        if route in self._missing:
            raise InvalidInput(self._missing[route], param="model", code="unsupported_by_engine")
        known = adapter is None or adapter.name in self._loaded
        if adapter is not None and not known:
            await self._load(adapter)
        response = await self._post(route, body)
        if response.status_code == httpx.codes.NOT_FOUND and adapter is not None and known:
            # The engine was restarted, or made room: what was loaded is so no more.
            await response.aclose()
            await self._load(adapter)
            response = await self._post(route, body)
        if not response.is_success:
            try:
                await _read(response)
                raise _error(response)
            finally:
                await response.aclose()
        return response

    async def _load(self, adapter: AdapterFiles) -> None:
        body: dict[str, Any] = {"lora_name": adapter.name, "lora_path": str(adapter.directory)}
        if adapter.members:
            if not self._has_means:
                raise InvalidInput(
                    "Means of adapters need the built-in engine (ENGINE_KIND=builtin).",
                    param="model",
                    code="unsupported_by_engine",
                )
            body["lora_members"] = [
                {"lora_path": str(one.directory), "weight": one.weight} for one in adapter.members
            ]
        try:
            response = await self._client.post(_LOAD, json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailable() from error
        is_there = self._loaded_already is not None and self._loaded_already in response.text
        if not response.is_success and not is_there:
            # The caller has chosen a model of theirs: that it cannot be loaded is ours to mend,
            # and why it cannot (which names our paths) ours to read.
            reason, _, code = _envelope(response)
            _log.error("the engine cannot load %s: %s", adapter.name, reason)
            if code == "checkpoint_corrupt":
                raise ModelDamaged(
                    f"The stored weights of {adapter.name!r} are damaged; they are not served."
                )
            raise EngineUnavailable(f"The inference engine cannot load {adapter.name!r} now.")
        self._loaded.add(adapter.name)

    async def _post(self, route: Route, body: dict[str, Any]) -> httpx.Response:
        request = self._client.build_request("POST", route, json=body)
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise EngineUnavailable() from error


def _http_client(settings: Settings) -> httpx.AsyncClient:
    key = settings.engine_api_key
    return httpx.AsyncClient(
        base_url=settings.engine_url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(settings.engine_timeout_seconds, connect=5),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        trust_env=False,
    )


class _Events:
    """See `port.EventStream`. A class, since a generator that was never begun cannot be closed."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_raw()

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except httpx.HTTPError as error:
            raise EngineUnavailable("The engine stopped in the middle of the answer.") from error

    async def aclose(self) -> None:
        await self._response.aclose()


async def _read(response: httpx.Response) -> None:
    try:
        await response.aread()
    except httpx.HTTPError as error:
        raise EngineUnavailable("The engine stopped in the middle of the answer.") from error


def _error(response: httpx.Response) -> DomainError:
    message, param, code = _envelope(response)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return TooManyRequests(message)
    if response.is_client_error and response.status_code not in (401, 403, 404, 408):
        return InvalidInput(message, param=param, code=code)
    # The caller's key and model were checked by us: what is left is ours to mend.
    return EngineUnavailable(f"The inference engine failed: {message}")


def _envelope(response: httpx.Response) -> tuple[str, str | None, str | None]:
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
