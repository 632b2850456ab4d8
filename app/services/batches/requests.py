"""Creating and cancelling batches."""

from dataclasses import dataclass

from sqlalchemy import Connection

from app.db.repositories import batches, files
from app.db.repositories.batches import Batch, NewBatch
from app.domain.errors import InvalidInput
from app.services.files import BATCH


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a user asks for."""

    endpoint: str
    completion_window: str
    input_file_id: str
    output_expires_after_seconds: int | None
    metadata: dict[str, str] | None


def create(connection: Connection, project_id: str, request: BatchRequest) -> Batch:
    """Accept a batch; what is wrong with its lines is found by the runner, and told in it.

    Raises:
        NotFound: no such file in this project.
        InvalidInput: the file was uploaded for another purpose.
    """
    file = files.get(connection, project_id, request.input_file_id, param="input_file_id")
    if file.purpose != BATCH:
        raise InvalidInput(
            f"File {file.id} has the purpose {file.purpose!r}; expected one that was uploaded with "
            f"the purpose {BATCH!r}",
            param="input_file_id",
        )
    return batches.add(
        connection,
        NewBatch(
            project_id=project_id,
            endpoint=request.endpoint,
            completion_window=request.completion_window,
            input_file_id=file.id,
            output_expires_after_seconds=request.output_expires_after_seconds,
            metadata=request.metadata,
        ),
    )
