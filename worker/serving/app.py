"""The engine's routes: OpenAI's wire, and vLLM's calls to load and unload adapters.

| route | answers |
|---|---|
| `GET /health` | 200 while every generation loop runs, else 503 |
| `GET /v1/models` | the loaded base models and adapters |
| `POST /v1/chat/completions` | OpenAI's, whole or as server-sent events |
| `POST /v1/completions` | OpenAI's, whole or as server-sent events |
| `POST /v1/predictions` | by models of tasks beside text generation |
| `POST /v1/explanations` | what tokens add to the scores of text classification |
| `POST /v1/embeddings` | OpenAI's, by models of feature extraction and base encoders |
| `POST /v1/score` | vLLM's, by models of text classification and of embeddings |
| `POST /v1/load_lora_adapter` | puts an adapter into service, or any other tuned model |
| `POST /v1/unload_lora_adapter` | takes it out of service |
| `GET /v1/engine/stats` | what the loops are doing |

`tools` go into the prompt if the chat template supports them; `tool_choice` "none" leaves them
out. Calls that a model then writes come back as `tool_calls`, if its template shows one of the
formats of `tool_formats`; else as the text that they are, and none can be enforced.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.disconnect import unless_disconnected
from app.domain.errors import DomainError, EngineUnavailable, TooLarge
from app.inference import Caller
from worker.serving.answers import chunk, collect, usage, whole
from worker.serving.bearer import BearerAuthentication
from worker.serving.body import parse
from worker.serving.callers import caller_of
from worker.serving.engine import Engine, Visit
from worker.serving.errors import (
    answer_domain_error,
    answer_http_error,
    answer_unexpected_error,
    envelope,
)
from worker.serving.explanations import explain
from worker.serving.predictions import embed, predict
from worker.serving.responses import (
    END_OF_EVENTS,
    EventStream,
    event,
    json_response,
)
from worker.serving.scores import score
from worker.serving.served_bases import FindBase
from worker.serving.served_model import ServedModel
from worker.serving.settings import EngineSettings
from worker.serving.submission import Submission, submit_chat, submit_completion
from worker.serving.task_models import ServedTaskModel
from worker.serving.trunk_loading import LoadTrunk
from worker.serving.wire import AdapterLoad, AdapterUnload
from worker.trunk.device import DeviceProfile

# The de-facto status for "the client closed the request", which no one is there to read.
_CLIENT_CLOSED_REQUEST = 499

_PLAIN_CPU = DeviceProfile("cpu", "float32", 1)


def create_app(
    settings: EngineSettings,
    find_base: FindBase,
    load_trunk: LoadTrunk,
    profile: DeviceProfile = _PLAIN_CPU,
) -> Starlette:
    """Return the engine as an ASGI application; it loads `settings.preload` when it starts.

    Args:
        profile: see `Engine`.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine = Engine(settings, find_base, load_trunk, profile)
        try:
            for name in settings.preload:
                await engine.preload(name)
            app.state.engine = engine
            app.state.max_body_bytes = settings.max_body_bytes
            app.state.max_prediction_bytes = settings.max_prediction_bytes
            yield
        finally:
            engine.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/health", _health),
            Route("/v1/models", _models),
            Route("/v1/chat/completions", _chat_completions, methods=["POST"]),
            Route("/v1/completions", _completions, methods=["POST"]),
            Route("/v1/predictions", _predictions, methods=["POST"]),
            Route("/v1/embeddings", _embeddings, methods=["POST"]),
            Route("/v1/score", _scores, methods=["POST"]),
            Route("/v1/explanations", _explanations, methods=["POST"]),
            Route("/v1/load_lora_adapter", _load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", _unload_adapter, methods=["POST"]),
            Route("/v1/engine/stats", _stats),
        ],
        middleware=[Middleware(BearerAuthentication, api_key=settings.api_key)],
        exception_handlers={
            DomainError: answer_domain_error,
            HTTPException: answer_http_error,
            ClientDisconnect: _answer_no_one,
            Exception: answer_unexpected_error,
        },
    )


async def _health(request: Request) -> Response:
    if not _engine(request).is_healthy:
        raise EngineUnavailable("a generation loop has ended")
    return json_response({})


async def _models(request: Request) -> Response:
    engine = _engine(request)
    models = [_model_object(model) for model in engine.models()]
    models += [_task_model_object(model) for model in engine.tasks.models()]
    return json_response({"object": "list", "data": models})


async def _stats(request: Request) -> Response:
    return json_response(_engine(request).stats())


async def _load_adapter(request: Request) -> Response:
    asked = parse(AdapterLoad, await _body(request))
    members = [(member.lora_path, member.weight) for member in asked.lora_members]
    await _engine(request).load_adapter(
        asked.lora_name, asked.lora_path, members, is_prefetch=asked.prefetch
    )
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


async def _unload_adapter(request: Request) -> Response:
    asked = parse(AdapterUnload, await _body(request))
    _engine(request).unload_adapter(asked.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


async def _chat_completions(request: Request) -> Response:
    return await _answer(request, submit_chat)


async def _completions(request: Request) -> Response:
    return await _answer(request, submit_completion)


async def _predictions(request: Request) -> Response:
    body = await _body(request, request.app.state.max_prediction_bytes)
    return json_response(
        await unless_disconnected(request, predict(_engine(request), body, caller_of(request)))
    )


async def _embeddings(request: Request) -> Response:
    body = await _body(request)
    return json_response(
        await unless_disconnected(request, embed(_engine(request), body, caller_of(request)))
    )


async def _scores(request: Request) -> Response:
    body = await _body(request)
    return json_response(
        await unless_disconnected(request, score(_engine(request), body, caller_of(request)))
    )


async def _explanations(request: Request) -> Response:
    body = await _body(request)
    return json_response(
        await unless_disconnected(request, explain(_engine(request), body, caller_of(request)))
    )


async def _answer(
    request: Request, submit: Callable[[Visit, bytes, Caller], Awaitable[Submission]]
) -> Response:
    body = await _body(request)
    with _engine(request).visit() as visit:
        submission = await submit(visit, body, caller_of(request))
    cancel = submission.generation.cancel
    if submission.is_stream:
        return EventStream(_events(submission), on_end=cancel)
    try:
        pieces = await unless_disconnected(request, collect(submission.generation))
    finally:
        cancel()
    heading, wording = submission.heading, submission.wording
    return json_response(whole(heading, wording, pieces, submission.prompt_tokens))


async def _events(submission: Submission) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events; an error in the middle is the last of them."""
    heading, wording = submission.heading, submission.wording
    # Once usage is asked for, every chunk has the field, and the last one its value.
    more: dict[str, Any] = {"usage": None} if submission.has_stream_usage else {}
    # An answer begins with its first token: until then, whoever asked can still ask elsewhere.
    opening = [chunk(heading, wording, [choice], **more) for choice in wording.opening()]
    ends = []
    try:
        async for piece in submission.generation:
            while opening:
                yield event(opening.pop(0))
            for choice in wording.chunk_choices(piece):
                yield event(chunk(heading, wording, [choice], **more))
            if piece.finish_reason is not None:
                ends.append(piece)
    except DomainError as error:
        yield event(envelope(error))
        return
    if submission.has_stream_usage:
        yield event(chunk(heading, wording, [], usage=usage(submission.prompt_tokens, ends)))
    yield END_OF_EVENTS


async def _body(request: Request, max_bytes: int | None = None) -> bytes:
    """Read the body. Raises: TooLarge, as soon as it is."""
    limit: int = max_bytes or request.app.state.max_body_bytes
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise TooLarge(f"the request is longer than {limit:,} bytes")
    return bytes(body)


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tunesmith",
        "root": str(model.directory),
        "parent": model.base.files.id if model.name != model.base.files.id else None,
        "max_model_len": model.base.context_length,
    }


def _task_model_object(model: ServedTaskModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tunesmith",
        "root": str(model.directory),
        "parent": None if model.is_base else model.base.id,
        "task": model.task,
    }


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _answer_no_one(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
