"""Routes of aliases: names that point at versions, and can be pointed elsewhere at once."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.aliases import (
    EXAMPLE_ALIAS,
    EXAMPLE_ROLLBACK,
    EXAMPLE_UPDATE,
    AliasList,
    AliasObject,
    AliasRevision,
    AliasRevisionList,
    CreateAliasRequest,
    DeletedAlias,
    RollBackAliasRequest,
    UpdateAliasRequest,
)
from app.api.schemas.common import errors
from app.db.repositories import aliases as rows
from app.services import aliases

router = APIRouter(prefix="/v1/aliases", tags=["Aliases"])

_TO_THE_ONE_BEFORE = RollBackAliasRequest()


@router.post(
    "",
    operation_id="createAlias",
    summary="Create an alias",
    response_model=AliasObject,
    responses=errors(400, 404, 409, 422),
)
def create_alias(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateAliasRequest, Body(examples=[EXAMPLE_ALIAS])],
) -> Response:
    """Let a name of your own stand for versions, from now on.

    Requests that name it in `model` are shared out by weight. Those with the same
    `safety_identifier` or `user` get the same version as long as weights stay. The answer's `model`
    is the version. A model that an alias points at cannot be deleted.
    """
    catalogue = resources.catalogue

    def create(connection: Connection) -> AliasObject:
        return AliasObject.of(
            aliases.create(connection, catalogue, principal, body.name, body.change())
        )

    return idempotent.once(create)


@router.get("", operation_id="listAliases", summary="List aliases", responses=errors(400))
def list_aliases(
    resources: ResourcesDep,
    principal: PrincipalDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> AliasList:
    """List the project's aliases, newest first."""
    with resources.database.read() as connection:
        page = rows.list_page(connection, principal.project_id, after=after, limit=limit)
    return AliasList(data=[AliasObject.of(one) for one in page.items], has_more=page.has_more)


@router.get(
    "/{name}",
    operation_id="retrieveAlias",
    summary="Retrieve an alias",
    responses=errors(404),
)
def retrieve_alias(resources: ResourcesDep, principal: PrincipalDep, name: str) -> AliasObject:
    with resources.database.read() as connection:
        return AliasObject.of(rows.get(connection, principal.project_id, name))


@router.post(
    "/{name}",
    operation_id="updateAlias",
    summary="Point an alias elsewhere",
    response_model=AliasObject,
    responses=errors(400, 404, 409, 422),
)
def update_alias(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentDep,
    name: str,
    body: Annotated[UpdateAliasRequest, Body(examples=[EXAMPLE_UPDATE])],
) -> Response:
    """Replace all targets and the shadow at once, by a new revision."""
    catalogue = resources.catalogue

    def point(connection: Connection) -> AliasObject:
        change = body.change(body.expected_revision)
        return AliasObject.of(aliases.point(connection, catalogue, principal, name, change))

    return idempotent.once(point)


@router.post(
    "/{name}/rollback",
    operation_id="rollBackAlias",
    summary="Roll an alias back",
    response_model=AliasObject,
    responses=errors(400, 404, 409, 422),
)
def roll_back_alias(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentDep,
    name: str,
    body: Annotated[RollBackAliasRequest, Body(examples=[EXAMPLE_ROLLBACK])] = _TO_THE_ONE_BEFORE,
) -> Response:
    """Point an alias where it did before: at once, by a new revision that says so."""
    catalogue = resources.catalogue

    def roll_back(connection: Connection) -> AliasObject:
        return AliasObject.of(
            aliases.roll_back(
                connection,
                catalogue,
                principal,
                name,
                to=body.revision,
                reason=body.reason,
                expected_revision=body.expected_revision,
            )
        )

    return idempotent.once(roll_back)


@router.get(
    "/{name}/revisions",
    operation_id="listAliasRevisions",
    summary="List an alias' revisions",
    responses=errors(400, 404),
)
def list_revisions(
    resources: ResourcesDep,
    principal: PrincipalDep,
    name: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> AliasRevisionList:
    """List where an alias pointed, by whom and why, newest first."""
    with resources.database.read() as connection:
        alias = rows.get(connection, principal.project_id, name)
        page = rows.list_revisions(connection, alias, after=after, limit=limit)
    return AliasRevisionList(
        data=[AliasRevision.of(one) for one in page.items], has_more=page.has_more
    )


@router.delete(
    "/{name}",
    operation_id="deleteAlias",
    summary="Delete an alias",
    responses=errors(404),
)
def delete_alias(resources: ResourcesDep, principal: PrincipalDep, name: str) -> DeletedAlias:
    """Delete an alias with its revisions, counts, feedback and samples; its versions stay."""
    with resources.database.write() as connection:
        alias = rows.get(connection, principal.project_id, name)
        aliases.remove(connection, principal.project_id, name)
    return DeletedAlias(id=alias.id)
