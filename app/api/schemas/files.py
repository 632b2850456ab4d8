"""Wire types of files."""

from typing import Literal

from app.api.schemas.common import ListObject, Response
from app.db.repositories.files import File


class OpenAIFile(Response):
    """A stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results", "adapter", "batch", "batch_output", "export"]
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None

    @classmethod
    def of(cls, file: File) -> "OpenAIFile":
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at),
            expires_at=int(file.expires_at) if file.expires_at is not None else None,
            filename=file.filename,
            purpose=file.purpose,
            # A file has a row only once its content is checked and stored.
            status="processed",
        )


class FileList(Response):
    object: ListObject = "list"
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(Response):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
