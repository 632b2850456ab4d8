"""Routes of files."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import Response, StreamingResponse
from pydantic import WithJsonSchema
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentUploadDep
from app.api.schemas.common import errors
from app.api.schemas.files import DeletedFile, FileList, OpenAIFile
from app.db.repositories import files as rows
from app.db.repositories import idempotency
from app.db.repositories.files import NewFile
from app.domain.datasets import RECORD_KINDS
from app.domain.errors import InvalidInput
from app.services import files

router = APIRouter(prefix="/v1/files", tags=["Files"])

# As an `enum` of one: generators of clients stumble over a `const` that may be null.
Anchor = Annotated[
    Literal["created_at"], WithJsonSchema({"type": "string", "enum": ["created_at"]})
]

_FILE = (
    "Records of one kind, in a format known from the content: JSON lines (one object a line, "
    "UTF-8), CSV or TSV with a header row (lists and objects as JSON in a cell), Parquet, or a zip "
    "of a `manifest.jsonl` or `manifest.csv` and the images or audio that it names. "
    "A line of each kind:\n\n"
) + "\n".join(f"- {kind.name}: `{kind.example}`" for kind in RECORD_KINDS)

_PURPOSE = (
    "`fine-tune` for a dataset. `adapter` for an adapter that jobs start from: a zip of the "
    "directory that peft saves, with `adapter_config.json` and `adapter_model.safetensors`, and "
    "for tasks beside text generation the `task.json` of Tunesmith's own adapters. `batch` for the "
    "requests of a batch. No other purpose is supported."
)

_FORM_FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}


async def _only_known_fields(request: Request) -> None:
    for field in await request.form():
        if field not in _FORM_FIELDS:
            raise InvalidInput(
                f"Unknown field {field!r}: nothing by this name is supported.",
                param=field,
                code="unknown_field",
            )


@router.post(
    "",
    operation_id="createFile",
    summary="Upload a dataset, an adapter or requests",
    response_model=OpenAIFile,
    responses=errors(400, 409, 413, 422, 503),
    dependencies=[Depends(_only_known_fields)],
)
def create_file(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentUploadDep,
    file: Annotated[
        UploadFile,
        # `format` is what generators of clients know a file by, as in OpenAPI 3.0.
        File(
            description=_FILE,
            json_schema_extra={"format": "binary"},
        ),
    ],
    purpose: Annotated[str, Form(description=_PURPOSE, examples=["fine-tune"])],
    expires_after_anchor: Annotated[Anchor | None, Form(alias="expires_after[anchor]")] = None,
    expires_after_seconds: Annotated[
        int | None, Form(alias="expires_after[seconds]", ge=3_600, le=2_592_000)
    ] = None,
) -> Response:
    """Check a dataset record by record, or an adapter tensor by tensor, and store it.

    What is wrong with it is told here, not later: the first line at fault, the field, and what was
    expected. All records of a dataset are of one kind, known from the keys of the first. Requests
    of a batch are checked when the batch is created.
    """
    files.check_purpose(purpose)
    if (expires_after_anchor is None) != (expires_after_seconds is None):
        raise InvalidInput(
            "Invalid 'expires_after': expected both 'anchor' and 'seconds'", param="expires_after"
        )
    if "\x00" in (file.filename or ""):
        raise InvalidInput("The file's name holds a NUL character.", param="file")

    def store() -> NewFile:
        return files.store(
            resources.storage,
            file.file,
            project_id=principal.project_id,
            purpose=purpose,
            filename=PurePath(file.filename or "upload.jsonl").name[:255],
            max_bytes=resources.settings.max_upload_bytes,
            min_free_bytes=resources.settings.min_free_bytes,
            expires_after_seconds=expires_after_seconds,
        )

    def add(connection: Connection, stored: NewFile) -> OpenAIFile:
        return OpenAIFile.of(rows.add(connection, stored))

    def discard(stored: NewFile) -> None:
        resources.storage.delete(stored.storage_key)

    return idempotent.once_prepared(add, prepare=store, discard=discard)


@router.get("", operation_id="listFiles", summary="List files", responses=errors(400))
def list_files(
    resources: ResourcesDep,
    principal: PrincipalDep,
    purpose: Annotated[str | None, Query(description="Only files of this purpose.")] = None,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    with resources.database.read() as connection:
        page = rows.list_page(
            connection,
            principal.project_id,
            purpose=purpose,
            after=after,
            limit=limit,
            order=order,
        )
    return FileList(
        data=[OpenAIFile.of(file) for file in page.items],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )


@router.get(
    "/{file_id}",
    operation_id="retrieveFile",
    summary="Retrieve a file",
    responses=errors(404),
)
def retrieve_file(resources: ResourcesDep, principal: PrincipalDep, file_id: str) -> OpenAIFile:
    with resources.database.read() as connection:
        return OpenAIFile.of(rows.get(connection, principal.project_id, file_id, param="file_id"))


@router.get(
    "/{file_id}/content",
    operation_id="downloadFile",
    summary="Download a file's content",
    response_class=StreamingResponse,
    responses={
        **errors(404),
        200: {
            "description": "The content, byte for byte.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
    },
)
def download_file(
    resources: ResourcesDep, principal: PrincipalDep, file_id: str
) -> StreamingResponse:
    with resources.database.read() as connection:
        file = rows.get(connection, principal.project_id, file_id, param="file_id")
    content: Iterator[bytes] = files.read(resources.storage, file)
    return StreamingResponse(
        content,
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        },
    )


@router.delete(
    "/{file_id}",
    operation_id="deleteFile",
    summary="Delete a file",
    responses=errors(400, 404),
)
def delete_file(resources: ResourcesDep, principal: PrincipalDep, file_id: str) -> DeletedFile:
    """Delete a file that no unfinished job or batch reads."""
    with resources.database.write() as connection:
        file = files.remove(connection, principal.project_id, file_id)
        # An upload of the same content is a new file from now on.
        idempotency.outdate(connection, principal.project_id, [router.prefix])
    resources.storage.delete(file.storage_key)
    return DeletedFile(id=file.id)
