"""Routes of batches: files of requests that are answered when there is time."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, BatchRunnerDep, PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.batches import EXAMPLE_BATCH, BatchList, BatchObject, CreateBatchRequest
from app.api.schemas.common import errors
from app.db.repositories import batches as rows
from app.services.batches import requests

router = APIRouter(prefix="/v1/batches", tags=["Batches"])


@router.post(
    "",
    operation_id="createBatch",
    summary="Create a batch",
    response_model=BatchObject,
    responses=errors(400, 404, 409, 422),
)
def create_batch(
    resources: ResourcesDep,
    principal: PrincipalDep,
    runner: BatchRunnerDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateBatchRequest, Body(examples=[EXAMPLE_BATCH])],
) -> Response:
    """Answer every request of a file, in what time the other requests leave.

    All lines are checked first: if one is not valid, the batch is `failed`, and `errors` names the
    lines, the fields, and what was expected.
    """
    request = body.to_domain()

    def create(connection: Connection) -> BatchObject:
        return BatchObject.of(requests.create(connection, principal.project_id, request))

    response = idempotent.once(create)
    runner.poke()
    return response


@router.get("", operation_id="listBatches", summary="List batches", responses=errors(400))
def list_batches(
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """List the project's batches, newest first."""
    with resources.database.read() as connection:
        page = rows.list_page(connection, principal.project_id, after=after, limit=limit)
    return BatchList(
        data=[BatchObject.of(batch) for batch in page.items],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )


@router.get(
    "/{batch_id}",
    operation_id="retrieveBatch",
    summary="Retrieve a batch",
    responses=errors(404),
)
def retrieve_batch(resources: ResourcesDep, principal: PrincipalDep, batch_id: str) -> BatchObject:
    with resources.database.read() as connection:
        return BatchObject.of(rows.get(connection, principal.project_id, batch_id))


@router.post(
    "/{batch_id}/cancel",
    operation_id="cancelBatch",
    summary="Cancel a batch",
    response_model=BatchObject,
    responses=errors(400, 404, 409, 422),
)
def cancel_batch(
    resources: ResourcesDep,
    principal: PrincipalDep,
    runner: BatchRunnerDep,
    idempotent: IdempotentDep,
    batch_id: str,
) -> Response:
    """Ask nothing more. What was answered until then is kept, in the output file."""

    def cancel(connection: Connection) -> BatchObject:
        return BatchObject.of(rows.cancel(connection, principal.project_id, batch_id))

    response = idempotent.once(cancel)
    runner.poke()
    return response
