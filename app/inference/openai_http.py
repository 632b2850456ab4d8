"""The client of an engine over HTTP: the built-in one, or a vLLM server in its place.

Both speak OpenAI's wire and vLLM's `/v1/load_lora_adapter`. A vLLM server must run with
`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, `--served-model-name` set to the catalogue's
id of its base model, and the adapters' storage mounted at the same path.
"""

import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

from app.domain.errors import (
    EngineUnavailable,
    InvalidInput,
    ModelDamaged,
    NotFound,
)
from app.inference.openai_errors import envelope_of, interrupted, read, refusal_of, unanswered
from app.inference.port import (
    PRIORITY_HEADER,
    PROJECT_HEADER,
    AdapterFiles,
    Caller,
    EngineModel,
    EngineWork,
    EventStream,
    Route,
)
from app.settings import Settings

_log = logging.getLogger("tunesmith.inference")

_LOAD = "/v1/load_lora_adapter"
_UNLOAD = "/v1/unload_lora_adapter"

# For what an engine answers at once if it answers at all.
_PROMPT_SECONDS = 2.0
# Less than the 5 s after which uvicorn closes a connection: one that it closes while a request is
# on its way would look like an engine that died.
_IDLE_CONNECTION_SECONDS = 4.0


# A machine that is gone says nothing: after half a minute without a sign of it, its answers end.
_PROBES = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        # Not every system can be told how often.
        if hasattr(socket, option)
    ),
]


def open_builtin(settings: Settings, url: str) -> "OpenAIHTTPEngine":
    return OpenAIHTTPEngine(_http_client(settings, url))


def open_vllm(settings: Settings, url: str) -> "OpenAIHTTPEngine":
    # vLLM answers 400 to a second load of one name, which for immutable names is success.
    return OpenAIHTTPEngine(
        _http_client(settings, url),
        loaded_already="already been loaded",
        missing={
            "/v1/predictions": "Predictions need the built-in engine (ENGINE_KIND=builtin): a vLLM "
            "server cannot load adapters with a head.",
            "/v1/explanations": "Explanations need the built-in engine (ENGINE_KIND=builtin).",
        },
        is_builtin=False,
    )


class OpenAIHTTPEngine:
    """See `port.EngineClient`.

    Args:
        loaded_already: the words in a 400 that mean the adapter is there.
        missing: why the server does not answer on some routes.
        is_builtin: whether it takes means of adapters, and hints.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        loaded_already: str | None = None,
        missing: Mapping[Route, str] | None = None,
        *,
        is_builtin: bool = True,
    ) -> None:
        self._client = client
        self._loaded_already = loaded_already
        self._missing = missing or {}
        self._is_builtin = is_builtin
        self._loaded: set[str] = set()
        # Of each name how many loads are under way, and which of these names were forgotten since.
        self._loading: Counter[str] = Counter()
        self._forgotten: set[str] = set()

    async def complete(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> dict[str, Any]:
        response = await self._send(route, body, adapter, caller)
        try:
            await read(response)
            answer: dict[str, Any] = response.json()
            return answer
        finally:
            await response.aclose()

    async def stream(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> EventStream:
        response = await self._send(route, body, adapter, caller)
        chunks = response.aiter_raw()
        try:
            # An answer has begun with its first event: until then another engine can give it.
            first = await anext(chunks, b"")
        except BaseException as error:
            await response.aclose()
            if isinstance(error, httpx.HTTPError):
                raise interrupted(error) from error
            raise
        return _Events(response, first, chunks)

    async def forget(self, adapter_name: str) -> None:
        self._loaded.discard(adapter_name)
        if adapter_name in self._loading:
            self._forgotten.add(adapter_name)
        body = {"lora_name": adapter_name}
        try:
            response = await self._client.post(_UNLOAD, json=body, timeout=_PROMPT_SECONDS)
        except httpx.HTTPError as error:
            raise unanswered(error) from error
        if not response.is_success and response.status_code != httpx.codes.NOT_FOUND:
            raise refusal_of(response)

    async def prefetch(self, adapter: AdapterFiles) -> None:
        # A vLLM server would let another adapter go, which may be in use.
        if not self._is_builtin or adapter.members:
            return
        body = {"lora_name": adapter.name, "lora_path": str(adapter.directory), "prefetch": True}
        try:
            response = await self._client.post(_LOAD, json=body)
        except httpx.HTTPError as error:
            raise unanswered(error) from error
        if not response.is_success:
            raise refusal_of(response)

    async def models(self) -> Sequence[EngineModel]:
        loaded_before = frozenset(self._loaded)
        try:
            response = await self._client.get("/v1/models", timeout=_PROMPT_SECONDS)
        except httpx.HTTPError as error:
            raise unanswered(error) from error
        if not response.is_success:
            raise refusal_of(response)
        try:
            listed = response.json()["data"]
            models = [EngineModel(str(one["id"]), one.get("parent")) for one in listed]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineUnavailable("The engine's list of models cannot be read.") from error
        # What another process let it forget is not asked for again: it would stay here for ever.
        self._loaded -= loaded_before.difference(one.name for one in models)
        return models

    async def work(self) -> EngineWork | None:
        if not self._is_builtin:
            return None
        try:
            response = await self._client.get("/v1/engine/stats", timeout=_PROMPT_SECONDS)
            return msgspec.json.decode(response.content, type=EngineWork)
        except (httpx.HTTPError, msgspec.DecodeError):
            return None

    async def is_ready(self) -> bool:
        try:
            return (await self._client.get("/health", timeout=_PROMPT_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> httpx.Response:
        """Return a successful response whose body is still to be read."""
        if route in self._missing:
            raise InvalidInput(self._missing[route], param="model", code="unsupported_by_engine")
        known = adapter is None or adapter.name in self._loaded
        if adapter is not None and not known:
            await self._load(adapter)
        response = await self._post(route, body, caller)
        if response.status_code == httpx.codes.NOT_FOUND and adapter is not None and known:
            # The engine was restarted, or made room: what was loaded is so no more.
            await response.aclose()
            await self._load(adapter)
            response = await self._post(route, body, caller)
        if not response.is_success:
            try:
                await read(response)
                raise refusal_of(response)
            finally:
                await response.aclose()
        return response

    async def _load(self, adapter: AdapterFiles) -> None:
        with self._loads(adapter.name):
            await self._ask_to_load(adapter)
            if adapter.name in self._forgotten:
                # It was deleted while it was loaded for whoever came just before.
                await self.forget(adapter.name)
                raise NotFound(f"The model {adapter.name!r} was deleted.", code="model_not_found")
            self._loaded.add(adapter.name)

    @contextmanager
    def _loads(self, name: str) -> Iterator[None]:
        """Let `forget` know, as long as the block lasts, that a name is being loaded."""
        self._loading[name] += 1
        try:
            yield
        finally:
            self._loading[name] -= 1
            if not self._loading[name]:
                del self._loading[name]
                self._forgotten.discard(name)

    async def _ask_to_load(self, adapter: AdapterFiles) -> None:
        body: dict[str, Any] = {"lora_name": adapter.name, "lora_path": str(adapter.directory)}
        if adapter.members:
            if not self._is_builtin:
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
            raise unanswered(error) from error
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise refusal_of(response)
        is_there = self._loaded_already is not None and self._loaded_already in response.text
        if not response.is_success and not is_there:
            # The caller has chosen a model of theirs: that it cannot be loaded is ours to mend,
            # and why it cannot (which names our paths) ours to read.
            reason, _, code = envelope_of(response)
            _log.error("the engine cannot load %s: %s", adapter.name, reason)
            if code == "checkpoint_corrupt":
                raise ModelDamaged(
                    f"The stored weights of {adapter.name!r} are damaged; they are not served."
                )
            raise EngineUnavailable(f"The inference engine cannot load {adapter.name!r} now.")

    async def _post(self, route: Route, body: dict[str, Any], caller: Caller) -> httpx.Response:
        headers = {PROJECT_HEADER: caller.project_id, PRIORITY_HEADER: caller.priority}
        request = self._client.build_request("POST", route, json=body, headers=headers)
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise unanswered(error) from error


def _http_client(settings: Settings, url: str) -> httpx.AsyncClient:
    key = settings.engine_api_key
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(settings.engine_timeout_seconds, connect=5),
        trust_env=False,
        transport=httpx.AsyncHTTPTransport(
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=100,
                keepalive_expiry=_IDLE_CONNECTION_SECONDS,
            ),
            trust_env=False,
            socket_options=_PROBES,
        ),
    )


class _Events:
    """See `port.EventStream`. A class, since a generator that was never begun cannot be closed."""

    def __init__(
        self, response: httpx.Response, first: bytes, chunks: AsyncIterator[bytes]
    ) -> None:
        self._response = response
        self._first = first
        self._chunks = chunks

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            return await anext(self._chunks)
        except httpx.HTTPError as error:
            raise interrupted(error) from error

    async def aclose(self) -> None:
        await self._response.aclose()
