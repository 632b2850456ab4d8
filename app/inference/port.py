"""What the API asks of an engine, and the registry of engines."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from app.domain.registry import Registry, resolve
from app.settings import Settings

Route = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/predictions",
    "/v1/embeddings",
    "/v1/explanations",
]


@dataclass(frozen=True, slots=True)
class MemberFiles:
    """One of the adapters that a mean is taken of; the weights of all are 1 together."""

    directory: Path
    weight: float


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter to answer with: its immutable name and the directory of its files.

    Attributes:
        members: if it is the mean of several adapters, these; the directory is that of the first.
    """

    name: str
    directory: Path
    members: Sequence[MemberFiles] = ()


class EventStream(Protocol):
    """Server-sent events as the engine makes them; iterate once."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """End the answer, wherever it is; the engine stops generating."""


class EngineClient(Protocol):
    """An engine that answers with the base model or any adapter, several at once."""

    async def complete(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None
    ) -> dict[str, Any]:
        """Return one whole answer. Cancelling the call stops the generation.

        Raises:
            InvalidInput: the engine refuses the request; its words and field are passed on. Or it
                has no such route, or takes no means of adapters.
            TooManyRequests: its queue is full.
            EngineUnavailable: it cannot be reached, or failed.
        """

    async def stream(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None
    ) -> EventStream:
        """Return server-sent events as the engine makes them, ending with `data: [DONE]`.

        Errors before the first event are raised as by `complete`; later ones are an event.
        Closing the stream stops the generation.
        """

    async def forget(self, adapter_name: str) -> None:
        """Unload an adapter that was deleted; an engine that is away has nothing to unload."""

    async def is_ready(self) -> bool:
        """Say whether the engine answers."""

    async def close(self) -> None:
        """Close every connection."""


# Each entry names a function that takes the settings and returns an EngineClient.
ENGINES: Registry[str] = Registry("engine")
ENGINES.add("builtin", "app.inference.openai_http:open_builtin")
ENGINES.add("vllm", "app.inference.openai_http:open_vllm")


def open_engine(settings: Settings) -> EngineClient:
    """Open the client that `engine_kind` names. Raises: UnknownName."""
    client: EngineClient = resolve(ENGINES[settings.engine_kind])(settings)
    return client
