"""Creating and cancelling exports; what is refused leaves no trace.

The work itself is a worker's (`worker/export_supervisor.py`).
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.clock import now
from app.db.repositories import ensembles, exports, jobs
from app.db.repositories.exports import Export, NewExport
from app.domain.errors import InvalidInput
from app.domain.exports import ExportStatus, check_format, choose_quantization
from app.domain.job_spec import JobSpec
from app.services import models


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """An export as its user asked for it, already checked for types and bounds.

    Attributes:
        quantization: None: the first that the format offers.
    """

    model: str
    format: str
    quantization: str | None
    metadata: dict[str, str] | None


def create(
    connection: Connection, catalogue: Catalogue, project_id: str, request: ExportRequest
) -> Export:
    """Add an export, which is queued.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the model cannot be exported like that; the message says why.
    """
    quantization = choose_quantization(request.format, request.quantization)
    # Nobody deletes the model between the look at it and the commit.
    ensembles.lock_members(connection, [request.model])
    adapter = models.find(connection, catalogue, project_id, request.model).adapter
    if adapter is None:
        raise InvalidInput(
            f"{request.model!r} is a base model, which lies where it was fetched from; only "
            "fine-tuned models are exported",
            param="model",
        )
    job = jobs.get(connection, project_id, adapter.job_id)
    if job.spec is None:
        raise InvalidInput(f"{request.model!r} does not say how it was trained", param="model")
    check_format(request.format, adapter.task, JobSpec.from_json(job.spec).adapter)
    return exports.add(
        connection,
        NewExport(
            project_id=project_id,
            model=request.model,
            format=request.format,
            quantization=quantization,
            metadata=request.metadata,
            job_id=adapter.job_id,
            base_model=adapter.base_model,
            storage_prefix=adapter.storage_prefix,
        ),
    )


def cancel(connection: Connection, project_id: str, export_id: str) -> Export:
    """Cancel an export; whoever works on it finds out at the next renewal of the lease.

    Raises:
        NotFound: no such export.
        InvalidTransition: it has ended already.
    """
    exports.get(connection, project_id, export_id)
    return exports.transition(
        connection, export_id, ExportStatus.CANCELLED, finished_at=now(), lease_expires_at=None
    )
