"""A stand-in for an engine: a real server whose answers have the shapes that vLLM's have.

The shapes are those of vLLM's OpenAI server with `--enable-lora` and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. How it behaves is in the requests themselves (see `SLOW` and
the others), so that tests that share one do not disturb each other.
"""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.factories import BASE_MODEL
from tests.support.polling import eventually

# What a prompt has to be for an answer that is not the usual one.
SLOW = "take for ever"
LATE = "take a second, then for ever"
# However the prompt goes on.
UNHURRIED = "take a tenth of a second"
DIE = "die in the middle of the answer"
REFUSE = "refuse with status "
# The first time only; whoever asks again gets an answer.
REFUSE_AT_FIRST = "refuse at first with status "
# The rest of the line is the answer.
SAY = "say "
# The answer is the name of the model.
WHO = "who are you"
# Answered at once, but at low priority only when the engine's `is_idle` is set.
HELD_BACK = "answer at low priority when idle"

# How the name of an adapter has to begin for a load that is not the usual one.
UNLOADABLE = "ft:unloadable"
DAMAGED = "ft:damaged"
FORGOTTEN_AT_ONCE = "ft:forgotten-at-once"
# Its load goes on until the engine is told to forget it: its files are gone, or had been read.
DELETED_MEANWHILE = "ft:deleted-meanwhile"
FORGOTTEN_MEANWHILE = "ft:forgotten-meanwhile"
# In the name of an adapter that the engine never comes to an end of reading.
UNREADABLE = ":unreadable:"

# A base model of the default catalogue that embeds texts.
ENCODER = "all-minilm-l6-v2"

# When one that is asked too much wants to be asked again, in seconds.
RETRY_AFTER = "17"

# What the built-in engine tells of itself, among other things.
STATS = {
    "running": 3,
    "waiting": 5,
    "kv_tokens": 1000,
    "kv_reserved_tokens": 300,
    "kv_stored_tokens": 400,
    "refused": 7,
    "timed_out": 1,
    "preempted": 2,
    "prefix_hits": 11,
    "reused_tokens": 130,
}

ANSWER = ("Got it", ": you", " asked", ".")


@dataclass
class FakeEngine:
    """What the server was asked, and what it holds.

    Attributes:
        has_idempotent_loads: whether a second load of a name succeeds (as in the built-in
            engine) or is refused (as in vLLM).
        bases: the base models that it answers with.
        loads: every load, as (name, directory).
        means: of every load that is a mean of adapters, its members as they were sent.
        requests: every request to answer, as its body.
        refusal: status with which every request to answer is refused, if it is.
        disconnected: set when a client went away before its answer was complete.
    """

    url: str = ""
    has_idempotent_loads: bool = False
    bases: tuple[str, ...] = (BASE_MODEL, ENCODER)
    loads: list[tuple[str, str]] = field(default_factory=list)
    means: list[list[dict[str, Any]]] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    callers: list[tuple[str | None, str | None]] = field(default_factory=list)
    refusal: int | None = None
    disconnected: threading.Event = field(default_factory=threading.Event)
    is_idle: threading.Event = field(default_factory=threading.Event)
    _loaded: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the adapters that it holds."""
        return frozenset(self._loaded)

    def hold(self, name: str) -> None:
        """Have an adapter, as after a load by somebody else."""
        self._loaded.add(name)

    def restart(self) -> None:
        """Forget what was loaded, as a new process does."""
        self._loaded.clear()

    async def health(self, request: Request) -> Response:
        return Response()

    async def stats(self, request: Request) -> Response:
        return JSONResponse({**STATS, "bases": {}})

    async def models(self, request: Request) -> Response:
        listed: list[dict[str, Any]] = [{"id": name, "parent": None} for name in self.bases]
        listed += [{"id": name, "parent": self.bases[0]} for name in sorted(self._loaded)]
        return JSONResponse({"object": "list", "data": listed})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        name = body["lora_name"]
        self.loads.append((name, body["lora_path"]))
        if body.get("prefetch"):
            while UNREADABLE in name and not await request.is_disconnected():
                await asyncio.sleep(0.01)
            # Its files are fetched ahead of the first request, which loads it.
            return PlainTextResponse(f"Success: LoRA adapter '{name}' is fetched.")
        if "lora_members" in body:
            self.means.append(body["lora_members"])
        if name in self._loaded and not self.has_idempotent_loads:
            message = f"The lora adapter '{name}' has already been loaded."
            return _error(400, message, "InvalidUserInput")
        if name.startswith(UNLOADABLE):
            message = f"{body['lora_path']}: LoRA rank 64 is greater than max_lora_rank 16."
            return _error(400, message, "BadRequestError")
        if name.startswith(DAMAGED):
            message = "the adapter is damaged: adapter_model.safetensors is not what was written"
            return _error(400, message, "BadRequestError", code="checkpoint_corrupt")
        if name.startswith((DELETED_MEANWHILE, FORGOTTEN_MEANWHILE)):
            while name not in self.unloads and not await request.is_disconnected():
                await asyncio.sleep(0.01)
        if name.startswith(DELETED_MEANWHILE):
            message = "'lora_path' is not a directory that adapters may be loaded from"
            return _error(400, message, "BadRequestError", param="lora_path")
        if name != FORGOTTEN_AT_ONCE:
            self._loaded.add(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.unloads.append(name)
        if name not in self._loaded:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        self._loaded.discard(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        return await self._answer(request, body, _CHAT, body["messages"][-1]["content"])

    async def completion(self, request: Request) -> Response:
        body = await request.json()
        return await self._answer(request, body, _COMPLETION, body["prompt"])

    async def predictions(self, request: Request) -> Response:
        body = await request.json()
        inputs = body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]]
        return await self._answer(request, body, _Predictions(len(inputs)), inputs[0])

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        return await self._answer(request, body, _Embeddings(len(texts)), texts[0])

    async def scores(self, request: Request) -> Response:
        body = await request.json()
        texts = body["text_2"] if isinstance(body["text_2"], list) else [body["text_2"]]
        return await self._answer(request, body, _Scores(len(texts)), texts[0])

    async def _answer(
        self, request: Request, body: dict[str, Any], shape: Any, prompt: Any
    ) -> Response:
        self.requests.append(body)
        self.authorizations.append(request.headers.get("authorization"))
        self.callers.append(
            (
                request.headers.get("x-tunesmith-project"),
                request.headers.get("x-tunesmith-priority"),
            )
        )
        if isinstance(shape, _Shape):
            shape = replace(shape, id=f"{shape.id}-{secrets.token_hex(6)}")
        # What a grader adds to a prompt comes on lines of its own.
        prompt = str(prompt).partition("\n")[0]
        model = body["model"]
        if model not in self.bases and model not in self._loaded:
            message = f"The model `{model}` does not exist."
            return _error(404, message, "NotFoundError", param="model")
        if self.refusal is not None or prompt.startswith(REFUSE):
            status = self.refusal or int(prompt.removeprefix(REFUSE))
            return _error(status, f"refused with {status}", "BadRequestError", param="seed")
        if prompt.startswith(REFUSE_AT_FIRST) and prompt not in self._refused:
            self._refused.add(prompt)
            status = int(prompt.removeprefix(REFUSE_AT_FIRST).split()[0])
            return _error(status, f"refused with {status}", "BadRequestError")
        if prompt.startswith(UNHURRIED):
            await asyncio.sleep(0.1)
        if prompt == LATE:
            await asyncio.sleep(1)
        if body.get("stream"):
            usage = (body.get("stream_options") or {}).get("include_usage", False)
            return StreamingResponse(
                self._stream(model, shape, prompt, usage), media_type="text/event-stream"
            )
        if prompt == DIE:
            return StreamingResponse(self._half(), media_type="application/json")
        if prompt in (SLOW, LATE):
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            self.disconnected.set()
        if prompt == HELD_BACK and request.headers.get("x-tunesmith-priority") == "low":
            while not (self.is_idle.is_set() or await request.is_disconnected()):
                await asyncio.sleep(0.01)
        answer = prompt.removeprefix(SAY) if prompt.startswith(SAY) else "".join(ANSWER)
        answer = model if prompt == WHO else answer
        return JSONResponse(shape.whole(model, answer))

    async def _stream(
        self, model: str, shape: "_Shape", prompt: str, usage: bool
    ) -> AsyncIterator[bytes]:
        is_complete = False
        try:
            for number, text in enumerate(ANSWER):
                is_last = number == len(ANSWER) - 1
                yield _event(shape.piece(model, text, "stop" if is_last else None))
                if prompt == DIE:
                    raise ConnectionAbortedError
                if prompt in (SLOW, LATE):
                    await asyncio.Event().wait()
            if usage:
                yield _event(shape.usage(model))
            yield b"data: [DONE]\n\n"
            is_complete = True
        finally:
            if not is_complete:
                self.disconnected.set()

    async def _half(self) -> AsyncIterator[bytes]:
        yield b'{"id": "chatcmpl-1", '
        raise ConnectionAbortedError


@contextmanager
def running_fake_engine(
    *,
    has_idempotent_loads: bool = False,
    bases: tuple[str, ...] = (BASE_MODEL, ENCODER),
) -> Iterator[FakeEngine]:
    """Serve a fake engine from a thread until the block ends."""
    engine = FakeEngine(has_idempotent_loads=has_idempotent_loads, bases=bases)
    with serving(engine):
        yield engine


@contextmanager
def serving(engine: FakeEngine, port: int = 0) -> Iterator[None]:
    """Let a fake engine answer until the block ends; it keeps what it holds after that."""
    app = Starlette(
        routes=[
            Route("/health", engine.health),
            Route("/v1/models", engine.models),
            Route("/v1/engine/stats", engine.stats),
            Route("/v1/load_lora_adapter", engine.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", engine.unload, methods=["POST"]),
            Route("/v1/chat/completions", engine.chat, methods=["POST"]),
            Route("/v1/completions", engine.completion, methods=["POST"]),
            Route("/v1/predictions", engine.predictions, methods=["POST"]),
            Route("/v1/embeddings", engine.embeddings, methods=["POST"]),
            Route("/v1/score", engine.scores, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            lifespan="off",
            # Dying in the middle of an answer is what some tests are about.
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, name="fake engine")
    thread.start()
    eventually(lambda: server.started, what="the fake engine listens", every_seconds=0.01)
    engine.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class _Shape:
    """How one of the two routes words its answers."""

    whole_object: str
    piece_object: str
    id: str

    def whole(self, model: str, text: str) -> dict[str, Any]:
        if self.whole_object == "chat.completion":
            choice: dict[str, Any] = {
                "message": {
                    "role": "assistant",
                    "content": text,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning_content": None,
                }
            }
        else:
            choice = {"text": text, "prompt_logprobs": None}
        choice |= {"index": 0, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        return self._heading(model, self.whole_object) | {"choices": [choice], "usage": _USAGE}

    def piece(self, model: str, text: str, finish_reason: str | None) -> dict[str, Any]:
        content = (
            {"delta": {"content": text}}
            if self.whole_object == "chat.completion"
            else {"text": text}
        )
        choice = {"index": 0, "logprobs": None, "finish_reason": finish_reason, **content}
        return self._heading(model, self.piece_object) | {"choices": [choice]}

    def usage(self, model: str) -> dict[str, Any]:
        return self._heading(model, self.piece_object) | {"choices": [], "usage": _USAGE}

    def _heading(self, model: str, object_: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }


@dataclass(frozen=True)
class _Predictions:
    """How predictions are worded: as the built-in engine does, since vLLM has none."""

    inputs: int

    def whole(self, model: str, text: str) -> dict[str, Any]:
        return {
            "id": "pred-1",
            "object": "prediction",
            "created": int(time.time()),
            "model": model,
            "task": "text-classification",
            "predictions": [[{"label": text, "score": 0.75}]] * self.inputs,
            "truncated_inputs": [],
            "usage": {"inputs": self.inputs, "input_tokens": 9},
        }


@dataclass(frozen=True)
class _Embeddings:
    """How vLLM words embeddings."""

    texts: int

    def whole(self, model: str, text: str) -> dict[str, Any]:
        return {
            "id": "embd-1",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [
                {"object": "embedding", "index": index, "embedding": [0.6, 0.8]}
                for index in range(self.texts)
            ],
            "usage": {
                "prompt_tokens": 9,
                "total_tokens": 9,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }


@dataclass(frozen=True)
class _Scores:
    """How vLLM words scores of pairs."""

    pairs: int

    def whole(self, model: str, text: str) -> dict[str, Any]:
        return {
            "id": "score-1",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [
                {"index": index, "object": "score", "score": 0.25} for index in range(self.pairs)
            ],
            "usage": {
                "prompt_tokens": 9,
                "total_tokens": 9,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }


_CHAT = _Shape("chat.completion", "chat.completion.chunk", "chatcmpl")
_COMPLETION = _Shape("text_completion", "text_completion", "cmpl")
_USAGE: Mapping[str, Any] = {
    "prompt_tokens": 9,
    "completion_tokens": len(ANSWER),
    "total_tokens": 9 + len(ANSWER),
    "prompt_tokens_details": None,
}


def _event(body: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _error(
    status: int, message: str, type_: str, param: str | None = None, code: str | None = None
) -> Response:
    body = {"message": message, "type": type_, "param": param, "code": code or status}
    headers = {"retry-after": RETRY_AFTER} if status == 429 else None
    return JSONResponse({"error": body}, status, headers)
