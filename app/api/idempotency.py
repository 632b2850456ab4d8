"""`Idempotency-Key`: a repeated POST gets its first answer again, byte for byte."""

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from app.api.deps import PrincipalDep
from app.api.streaming import EventStreamResponse
from app.db.repositories.idempotency import Answer, Claim
from app.domain.errors import InvalidInput
from app.inference.port import EventStream
from app.services.idempotency import Claims

REPLAYED = "Idempotent-Replayed"

# How OpenAI's client numbers its attempts at one request, from 0.
_ATTEMPT = "x-stainless-retry-count"
_LONGEST_PATH = 255
_CHUNK_BYTES = 1 << 20
_ENDS_OF_STREAM = (b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n")
# How a stream of a response ends, which has no such line.
_LAST_EVENT = re.compile(rb"event: response\.(?:completed|incomplete)\ndata: [^\n]*\n\n\Z")
_ERROR_EVENT = re.compile(rb'^data: ?\{\s*"error"', re.MULTILINE)

T = TypeVar("T")

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A name of your own for this request, in visible characters. For 24 hours a "
        "repetition under the same key gets the first answer again, with the header "
        "`Idempotent-Replayed: true`.",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
    ),
]


@dataclass(frozen=True, slots=True)
class Idempotent:
    """One request, and what is known of its being a repetition."""

    claims: Claims
    claim: Claim | None

    def once(self, effect: Callable[[Connection], BaseModel]) -> Response:
        """Do in one transaction what was asked for, unless it was done before.

        Raises:
            RequestInFlight: another request with the key is still being answered.
            IdempotencyKeyReused: the key was used for another request.
            DomainError: as `effect` does.
        """
        return self.once_prepared(
            lambda connection, _: effect(connection),
            prepare=lambda: None,
            discard=lambda _: None,
        )

    def once_prepared(
        self,
        effect: Callable[[Connection, T], BaseModel],
        *,
        prepare: Callable[[], T],
        discard: Callable[[T], None],
    ) -> Response:
        """As `once`, for what needs work outside of the transaction; see `Claims.once`."""
        outcome = self.claims.once(
            self.claim,
            lambda connection, prepared: _answer(effect(connection, prepared)),
            prepare=prepare,
            discard=discard,
        )
        return _response(outcome.answer, outcome.is_replayed)

    async def generated_once(self, generate: Callable[[], Awaitable[Response]]) -> Response:
        """Generate an answer, unless there is one; a stream is stored when it was all sent.

        Raises:
            RequestInFlight: another request with the key is still being answered.
            IdempotencyKeyReused: the key was used for another request.
            DomainError: as `generate` does.
        """
        claim = self.claim
        if claim is None:
            return await generate()
        stored = await run_in_threadpool(self.claims.begin, claim)
        if stored is not None:
            return _response(stored, is_replayed=True)
        try:
            response = await generate()
        except BaseException:
            await run_in_threadpool(self.claims.release, claim)
            raise
        if isinstance(response, EventStreamResponse):
            content_type = response.headers["content-type"]
            return EventStreamResponse(_Recorded(response.events, content_type, self.claims, claim))
        if response.status_code != 200:
            await run_in_threadpool(self.claims.release, claim)
            return response
        answer = Answer(200, response.headers["content-type"], bytes(response.body))
        await run_in_threadpool(self.claims.store, claim, answer)
        return response


class _Recorded:
    """See `port.EventStream`: passes events on, and stores them before the last of them is sent."""

    def __init__(
        self, events: EventStream, content_type: str, claims: Claims, claim: Claim
    ) -> None:
        self._events = events
        self._chunks = aiter(events)
        self._content_type = content_type
        self._claims = claims
        self._claim = claim
        self._sent = bytearray()
        self._is_stored = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self._sent += chunk
        if self._is_whole():
            answer = Answer(200, self._content_type, bytes(self._sent))
            await run_in_threadpool(self._claims.store, self._claim, answer)
            self._is_stored = True
        return chunk

    def _is_whole(self) -> bool:
        # Of all that was sent only the end is looked at: a long answer comes in many chunks.
        end_before = self._sent.rfind(b"\n\n", 0, -2)
        if _LAST_EVENT.match(self._sent, 0 if end_before < 0 else end_before + 2):
            return True
        return self._sent.endswith(_ENDS_OF_STREAM) and not _ERROR_EVENT.search(self._sent)

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            if not self._is_stored:
                await run_in_threadpool(self._claims.release, self._claim)


def _answer(body: BaseModel) -> Answer:
    return Answer(200, "application/json", body.model_dump_json(by_alias=True).encode())


def _response(answer: Answer, is_replayed: bool) -> Response:
    headers = {"content-type": answer.content_type}
    if is_replayed:
        headers[REPLAYED] = "true"
    return Response(answer.body, answer.status, headers)


async def _of_json(request: Request, principal: PrincipalDep, key: KeyHeader = None) -> Idempotent:
    if key is None and _attempt(request) is None:
        return _identified(request, principal.project_id, None, None)
    return _identified(request, principal.project_id, key, await _digest_of_body(request))


async def _of_upload(
    request: Request, principal: PrincipalDep, key: KeyHeader = None
) -> Idempotent:
    if key is None and _attempt(request) is None:
        return _identified(request, principal.project_id, None, None)
    fingerprint = await run_in_threadpool(_fingerprint, await request.form())
    return _identified(request, principal.project_id, key, fingerprint)


async def _of_generation(
    request: Request, principal: PrincipalDep, key: KeyHeader = None
) -> Idempotent:
    # To generate an answer again harms nobody: without a key nothing is written down.
    fingerprint = None if key is None else await _digest_of_body(request)
    return _identified(request, principal.project_id, key, fingerprint)


IdempotentDep = Annotated[Idempotent, Depends(_of_json)]
IdempotentUploadDep = Annotated[Idempotent, Depends(_of_upload)]
IdempotentGenerationDep = Annotated[Idempotent, Depends(_of_generation)]


def _identified(
    request: Request, project_id: str, key: str | None, fingerprint: str | None
) -> Idempotent:
    claims: Claims = request.app.state.claims
    if fingerprint is None:
        return Idempotent(claims, None)
    path: str = request.scope["path"]
    if len(path) > _LONGEST_PATH:  # No id of ours is as long, and an index cannot hold it.
        path = hashlib.sha256(path.encode()).hexdigest()
    claim = Claim(
        project_id=project_id,
        method=request.method,
        path=path,
        key=key,
        fingerprint=fingerprint,
        owner=secrets.token_hex(16),
        is_repetition=bool(_attempt(request)),
    )
    return Idempotent(claims, claim)


def _attempt(request: Request) -> int | None:
    count = request.headers.get(_ATTEMPT, "")
    return int(count) if re.fullmatch("[0-9]{1,4}", count) else None


async def _digest_of_body(request: Request) -> str:
    try:
        return hashlib.sha256(await request.body()).hexdigest()
    except ClientDisconnect:
        raise InvalidInput("The body broke off.") from None


def _fingerprint(form: FormData) -> str:
    """Digest a form by its fields: the boundary between them differs at each attempt."""
    fields = sorted((name, *_digests(value)) for name, value in form.multi_items())
    return hashlib.sha256(repr(fields).encode()).hexdigest()


def _digests(value: UploadFile | str) -> tuple[str, str]:
    if isinstance(value, str):
        return "", value
    digest = hashlib.sha256()
    value.file.seek(0)
    while chunk := value.file.read(_CHUNK_BYTES):
        digest.update(chunk)
    value.file.seek(0)
    return value.filename or "", digest.hexdigest()
