"""Routes of models: the operator's base models, and the fine-tuned ones of the project."""

import asyncio

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from app.api.deps import PrincipalDep, ResourcesDep
from app.api.schemas.common import errors
from app.api.schemas.models import DeletedModel, Model, ModelList
from app.db.repositories import adapters, aliases, ensembles
from app.domain.errors import InvalidInput
from app.resources import Resources
from app.services import ensembles as ensemble_service
from app.services import models

router = APIRouter(prefix="/v1/models", tags=["Models"])

OPERATOR = "operator"


@router.get("", operation_id="listModels", summary="List models", responses=errors())
def list_models(resources: ResourcesDep, principal: PrincipalDep) -> ModelList:
    """List the base models, then the project's models, ensembles and aliases, oldest first."""
    with resources.database.read() as connection:
        tuned = adapters.list_final(connection, principal.project_id)
        joined = ensembles.list_all(connection, principal.project_id)
        named = aliases.list_all(connection, principal.project_id)
    base = [_wire(model_id, None, OPERATOR) for model_id in resources.catalogue.models]
    own = [(one.created_at, one.name) for one in tuned]
    own += [(one.created_at, one.model) for one in joined]
    own += [(one.created_at, one.name) for one in named]
    owner = principal.organization_name
    return ModelList(
        data=base + [_wire(name, created_at, owner) for created_at, name in sorted(own)]
    )


# Names may hold slashes, which arrive decoded: the whole rest of the path is the name.
@router.get(
    "/{model:path}",
    operation_id="retrieveModel",
    summary="Retrieve a model",
    responses=errors(404),
)
def retrieve_model(resources: ResourcesDep, principal: PrincipalDep, model: str) -> Model:
    catalogue = resources.catalogue
    owner = principal.organization_name
    with resources.database.read() as connection:
        alias = aliases.find(connection, principal.project_id, model)
        if alias is not None:
            return _wire(alias.name, alias.created_at, owner)
        ensemble = ensembles.find(connection, principal.project_id, model)
        if ensemble is not None:
            return _wire(ensemble.model, ensemble.created_at, owner)
        found = models.find(connection, catalogue, principal.project_id, model)
    if found.adapter is None:
        return _wire(found.base.id, None, OPERATOR)
    return _wire(found.adapter.name, found.adapter.created_at, owner)


@router.delete(
    "/{model:path}",
    operation_id="deleteModel",
    summary="Delete a fine-tuned model",
    responses=errors(400, 404),
)
async def delete_model(
    resources: ResourcesDep, principal: PrincipalDep, model: str
) -> DeletedModel:
    """Delete a fine-tuned model, the model of a checkpoint or an ensemble.

    The name is never used again. What an ensemble or an alias needs cannot be deleted, and an alias
    only at its own route.
    """
    going = await run_in_threadpool(_delete, resources, principal.project_id, model)
    await asyncio.gather(*(resources.engine.forget(name) for name in going))
    return DeletedModel(id=model)


def _delete(resources: Resources, project_id: str, name: str) -> list[str]:
    """Delete a model, and return the names that engines are to forget."""
    catalogue = resources.catalogue
    with resources.database.write() as connection:
        if aliases.find(connection, project_id, name) is not None:
            # Whoever deletes each model that is listed does not mean the names that callers use.
            raise InvalidInput(
                f"The model {name!r} is an alias: DELETE /v1/aliases/{name} deletes it, with all "
                "that is known of it.",
                param="model",
                code="alias",
            )
        ensemble = ensembles.find(connection, project_id, name)
        if ensemble is not None:
            ensemble_service.remove(connection, project_id, ensemble.id)
            return [name]
        adapter = models.find(connection, catalogue, project_id, name).adapter
        going = models.names_that_go_with(connection, adapter) if adapter else []
        unused_prefix = models.remove(connection, catalogue, project_id, name)
    if unused_prefix is not None:
        resources.storage.delete(unused_prefix)
    return going


def _wire(name: str, created_at: float | None, owner: str) -> Model:
    return Model(id=name, created=int(created_at or 0), owned_by=owner)
