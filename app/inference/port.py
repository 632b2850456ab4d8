"""What the API asks of an engine, and the registry of engines."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from app.domain.errors import EngineUnavailable
from app.domain.registry import Registry

Route = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/predictions",
    "/v1/embeddings",
    "/v1/explanations",
    "/v1/score",
]


Priority = Literal["normal", "low"]

# How an engine is told for whom it works; a vLLM server leaves these unread.
PROJECT_HEADER = "x-tunesmith-project"
PRIORITY_HEADER = "x-tunesmith-priority"


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom an engine works.

    Attributes:
        project_id: engines take turns between projects, and share nothing of one with another.
        priority: "low" is for work that nobody waits for; it gets what others leave.
    """

    project_id: str
    priority: Priority = "normal"


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
        base_model: id of the base model that it was tuned from, if the caller knows.
    """

    name: str
    directory: Path
    members: Sequence[MemberFiles] = ()
    base_model: str | None = None


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that an engine has; `parent` is the base model of one that was tuned."""

    name: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class EngineWork:
    """What an engine is doing, and has done since it began, for all its chat models together.

    Attributes:
        running: sequences in its steps.
        kv_tokens: the memory for keys and values; running sequences have reserved
            `kv_reserved_tokens` of it, `kv_stored_tokens` are kept for others to begin with.
        refused: sequences for which there was no room to wait.
        timed_out: those that have waited too long.
        preempted: how often one had to yield to another.
        prefix_hits: those that began with what was kept, which saved `reused_tokens`.
    """

    running: int
    waiting: int
    kv_tokens: int
    kv_reserved_tokens: int
    kv_stored_tokens: int
    refused: int
    timed_out: int
    preempted: int
    prefix_hits: int
    reused_tokens: int


class EngineUnreachable(EngineUnavailable):
    """The inference engine cannot be reached right now; try again."""


class EngineTimeout(EngineUnavailable):
    """The inference engine took too long to answer."""


class EventStream(Protocol):
    """Server-sent events as the engine makes them; iterate once."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """End the answer, wherever it is; the engine stops generating."""


class EngineClient(Protocol):
    """An engine that answers with the base model or any adapter, several at once."""

    async def complete(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> dict[str, Any]:
        """Return one whole answer. Cancelling the call stops the generation.

        Raises:
            InvalidInput: the engine refuses the request; its words and field are passed on. Or it
                has no such route, or takes no means of adapters (code `unsupported_by_engine`).
            TooManyRequests: its queue is full.
            EngineUnreachable: it cannot be connected to.
            EngineTimeout: it took too long.
            EngineUnavailable: it failed.
        """

    async def stream(
        self, route: Route, body: dict[str, Any], adapter: AdapterFiles | None, caller: Caller
    ) -> EventStream:
        """Return server-sent events as the engine makes them, ending with `data: [DONE]`.

        Errors before the first event are raised as by `complete`; later ones are an event.
        Closing the stream stops the generation.
        """

    async def forget(self, adapter_name: str) -> None:
        """Unload an adapter that was deleted.

        Raises:
            EngineUnavailable: the engine could not be told.
        """

    async def prefetch(self, adapter: AdapterFiles) -> None:
        """Let the engine read an adapter that nobody has asked for yet, if it takes such hints.

        Raises:
            EngineUnavailable: it could not be told, or cannot read it.
        """

    async def models(self) -> Sequence[EngineModel]:
        """Return the models that the engine has now.

        Raises:
            EngineUnavailable: it does not say.
        """

    async def work(self) -> EngineWork | None:
        """Return what the engine is doing; None if it does not say, or not in these words."""

    async def is_ready(self) -> bool:
        """Say whether the engine answers."""

    async def close(self) -> None:
        """Close every connection."""


# Each entry names a function that takes the settings and the URL of an engine, and returns an
# EngineClient.
ENGINES: Registry[str] = Registry("engine")
ENGINES.add("builtin", "app.inference.openai_http:open_builtin")
ENGINES.add("vllm", "app.inference.openai_http:open_vllm")
