"""Routes of ensembles: several fine-tuned models that answer as one."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.common import errors
from app.api.schemas.ensembles import (
    EXAMPLE_ENSEMBLE,
    CreateEnsembleRequest,
    DeletedEnsemble,
    EnsembleList,
    EnsembleObject,
)
from app.db.repositories import ensembles as rows
from app.db.repositories.ensembles import Ensemble, NewEnsemble
from app.resources import Resources
from app.services import ensembles

router = APIRouter(prefix="/v1/ensembles", tags=["Ensembles"])


@router.post(
    "",
    operation_id="createEnsemble",
    summary="Create an ensemble",
    response_model=EnsembleObject,
    responses=errors(400, 404, 409, 422),
)
def create_ensemble(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateEnsembleRequest, Body(examples=[EXAMPLE_ENSEMBLE])],
) -> Response:
    """Let several fine-tuned models answer as one, under a name of its own, from now on.

    A mean of probabilities answers `/v1/predictions`, where `parameters` may hold `top_k`; a mean
    of adapters `/v1/chat/completions` and `/v1/completions`. No member can be deleted as long as
    the ensemble is there.
    """
    request = body.to_domain()

    def add(connection: Connection, prepared: NewEnsemble) -> EnsembleObject:
        return EnsembleObject.of(ensembles.add(connection, prepared))

    return idempotent.once_prepared(
        add,
        prepare=lambda: ensembles.prepare(resources, principal, request),
        discard=lambda _: None,
    )


@router.get("", operation_id="listEnsembles", summary="List ensembles", responses=errors(400))
def list_ensembles(
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> EnsembleList:
    """List the project's ensembles, newest first."""
    with resources.database.read() as connection:
        page = rows.list_page(connection, principal.project_id, after=after, limit=limit)
    return EnsembleList(data=[EnsembleObject.of(one) for one in page.items], has_more=page.has_more)


@router.get(
    "/{ensemble_id}",
    operation_id="retrieveEnsemble",
    summary="Retrieve an ensemble",
    responses=errors(404),
)
def retrieve_ensemble(
    resources: ResourcesDep, principal: PrincipalDep, ensemble_id: str
) -> EnsembleObject:
    with resources.database.read() as connection:
        return EnsembleObject.of(rows.get(connection, principal.project_id, ensemble_id))


@router.delete(
    "/{ensemble_id}",
    operation_id="deleteEnsemble",
    summary="Delete an ensemble",
    responses=errors(404),
)
async def delete_ensemble(
    resources: ResourcesDep, principal: PrincipalDep, ensemble_id: str
) -> DeletedEnsemble:
    """Delete an ensemble; its members stay. Its name is never used again."""
    gone = await run_in_threadpool(_delete, resources, principal.project_id, ensemble_id)
    await resources.engine.forget(gone.model)
    return DeletedEnsemble(id=ensemble_id)


def _delete(resources: Resources, project_id: str, ensemble_id: str) -> Ensemble:
    with resources.database.write() as connection:
        return ensembles.remove(connection, project_id, ensemble_id)
