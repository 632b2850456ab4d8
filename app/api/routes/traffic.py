"""Routes of what versions answered: counts, feedback, and the report of an alias."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import Connection

from app.api.deps import AfterQuery, PrincipalDep, ResourcesDep
from app.api.idempotency import IdempotentDep
from app.api.schemas.alias_reports import AliasReport, ShadowSampleList, ShadowSampleObject
from app.api.schemas.common import errors
from app.api.schemas.feedback import (
    EXAMPLE_FEEDBACK,
    CreateFeedbackRequest,
    FeedbackList,
    FeedbackObject,
)
from app.api.schemas.traffic import ModelUsage, ModelUsageList
from app.db.repositories import aliases, shadow_samples
from app.db.repositories import feedback as feedback_rows
from app.db.repositories import traffic as traffic_rows
from app.domain.traffic import Version
from app.services import alias_reports, feedback

router = APIRouter(prefix="/v1", tags=["Aliases"])


@router.get("/usage", operation_id="listUsage", summary="List usage", responses=errors(400))
def list_usage(
    resources: ResourcesDep,
    principal: PrincipalDep,
    model: Annotated[str | None, Query(description="Only of this model.")] = None,
) -> ModelUsageList:
    """List what each of the project's models has answered, by its own name and by aliases.

    Counts are written about every second; a crash loses what was answered since the last time.
    """
    with resources.database.read() as connection:
        counted = traffic_rows.list_of_project(connection, principal.project_id)
        named = {one.id: one.name for one in aliases.list_all(connection, principal.project_id)}
    return ModelUsageList(
        data=[
            ModelUsage.of(one, named.get(one.version.alias_id))
            for one in counted
            if model in (None, one.version.model)
        ]
    )


@router.post(
    "/feedback",
    operation_id="createFeedback",
    summary="Give feedback on an answer",
    response_model=FeedbackObject,
    responses=errors(400, 404, 409, 422),
)
def create_feedback(
    resources: ResourcesDep,
    principal: PrincipalDep,
    idempotent: IdempotentDep,
    body: Annotated[CreateFeedbackRequest, Body(examples=[EXAMPLE_FEEDBACK])],
) -> Response:
    """Say how good an answer of an alias was; the version that gave it is credited.

    A second time replaces the first. Feedback is taken for a week after the answer, unless the
    operator says otherwise.
    """

    def give(connection: Connection, version: Version) -> FeedbackObject:
        return FeedbackObject.of(
            feedback.give(
                connection,
                version,
                body.completion_id,
                score=body.score,
                comment=body.comment,
                metadata=body.metadata,
            )
        )

    return idempotent.once_prepared(
        give,
        prepare=lambda: feedback.find_version(resources, principal.project_id, body.completion_id),
        discard=lambda _: None,
    )


@router.get(
    "/aliases/{name}/feedback",
    operation_id="listAliasFeedback",
    summary="List the feedback on an alias",
    responses=errors(400, 404),
)
def list_feedback(
    resources: ResourcesDep,
    principal: PrincipalDep,
    name: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> FeedbackList:
    """List what was thought of an alias' answers, newest first."""
    project_id = principal.project_id
    with resources.database.read() as connection:
        alias = aliases.get(connection, project_id, name)
        page = feedback_rows.list_page(connection, project_id, alias.id, after=after, limit=limit)
    return FeedbackList(data=[FeedbackObject.of(one) for one in page.items], has_more=page.has_more)


@router.get(
    "/aliases/{name}/shadow_samples",
    operation_id="listAliasShadowSamples",
    summary="List what an alias' shadows said",
    responses=errors(400, 404),
)
def list_shadow_samples(
    resources: ResourcesDep,
    principal: PrincipalDep,
    name: str,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ShadowSampleList:
    """List the requests that a shadow was asked, too, newest first."""
    project_id = principal.project_id
    with resources.database.read() as connection:
        alias = aliases.get(connection, project_id, name)
        page = shadow_samples.list_page(connection, project_id, alias.id, after=after, limit=limit)
    return ShadowSampleList(
        data=[ShadowSampleObject.of(one) for one in page.items], has_more=page.has_more
    )


@router.get(
    "/aliases/{name}/report",
    operation_id="retrieveAliasReport",
    summary="Compare an alias' versions",
    responses=errors(400, 404),
)
def retrieve_report(
    resources: ResourcesDep,
    principal: PrincipalDep,
    name: str,
    revision: Annotated[
        int | None, Query(ge=1, description="Its number; without it, the current one.")
    ] = None,
    baseline: Annotated[
        str | None,
        Query(description="What others are compared with; without it, that of the largest weight."),
    ] = None,
) -> AliasReport:
    """Compare the versions of one revision, with intervals of 95 % and a plain verdict."""
    with resources.database.read() as connection:
        return AliasReport.of(
            alias_reports.report(connection, principal.project_id, name, revision, baseline)
        )
