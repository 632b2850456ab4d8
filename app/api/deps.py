"""What routes ask for: the live resources, who is asking, and pages."""

from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer

from app.db.repositories.keys import Principal
from app.resources import Resources
from app.services.sweeper import Sweeper

# Documents the scheme; the middleware has already checked the key.
bearer = HTTPBearer(
    scheme_name="ApiKey",
    description="A key made by `tunesmith keys create`.",
    auto_error=False,
)


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


def _sweeper(request: Request) -> Sweeper:
    sweeper: Sweeper = request.app.state.sweeper
    return sweeper


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


ResourcesDep = Annotated[Resources, Depends(_resources)]
SweeperDep = Annotated[Sweeper, Depends(_sweeper)]
PrincipalDep = Annotated[Principal, Depends(_principal)]

AfterQuery = Annotated[
    str | None, Query(description="The id of the last object of the page before.")
]
