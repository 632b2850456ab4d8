"""Routes of exports: fine-tuned models as files that other software loads."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep, SweeperDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.common import errors
from app.api.schemas.exports import (
    EXAMPLE_EXPORT,
    CreateExportRequest,
    ExportList,
    ExportObject,
)
from app.db.repositories import exports as rows
from app.services import exports

router = APIRouter(prefix="/v1/exports", tags=["Exports"])


@router.post(
    "",
    operation_id="createExport",
    summary="Export a model",
    response_model=ExportObject,
    responses=errors(400, 404, 409, 422),
)
def create_export(
    resources: ResourcesDep,
    principal: PrincipalDep,
    sweeper: SweeperDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateExportRequest, Body(examples=[EXAMPLE_EXPORT])],
) -> Response:
    """Make files of a fine-tuned model, load them back, and compare what they compute."""
    catalogue = resources.catalogue
    request = body.to_domain()

    def create(connection: Connection) -> ExportObject:
        return ExportObject.of(exports.create(connection, catalogue, principal.project_id, request))

    response = idempotent.once(create)
    sweeper.poke()
    return response


@router.get("", operation_id="listExports", summary="List exports", responses=errors(400))
def list_exports(
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ExportList:
    """List the project's exports, newest first."""
    with resources.database.read() as connection:
        page = rows.list_page(connection, principal.project_id, after=after, limit=limit)
    return ExportList(
        data=[ExportObject.of(export) for export in page.items],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )


@router.get(
    "/{export_id}",
    operation_id="retrieveExport",
    summary="Retrieve an export",
    responses=errors(404),
)
def retrieve_export(
    resources: ResourcesDep, principal: PrincipalDep, export_id: str
) -> ExportObject:
    with resources.database.read() as connection:
        return ExportObject.of(rows.get(connection, principal.project_id, export_id))


@router.post(
    "/{export_id}/cancel",
    operation_id="cancelExport",
    summary="Cancel an export",
    response_model=ExportObject,
    responses=errors(400, 404, 409, 422),
)
def cancel_export(principal: PrincipalDep, idempotent: IdempotentDep, export_id: str) -> Response:
    """Cancel an export that has not ended; nothing of it is kept."""

    def cancel(connection: Connection) -> ExportObject:
        return ExportObject.of(exports.cancel(connection, principal.project_id, export_id))

    return idempotent.once(cancel)
