"""What routes ask for: the live resources, who is asking, and pages."""

from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer

from app.db.repositories.keys import Principal
from app.domain.errors import InvalidInput
from app.resources import Resources
from app.services.batches.runner import BatchRunner
from app.services.sweeper import Sweeper

# Documents the scheme; the middleware has already checked the key.
bearer = HTTPBearer(
    scheme_name="ApiKey",
    description="A key made by `tunesmith keys create`.",
    auto_error=False,
)


def refuse_odd_queries(request: Request) -> None:
    """Refuse what no route reads. Raises: InvalidInput, naming it."""
    if "\x00" in request.scope["path"] or any("\x00" in f"{k}{v}" for k, v in _query(request)):
        raise InvalidInput("The URL holds a NUL character.")
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    # Those that a route reads by itself are at least documented.
    families = {one["name"] for one in (route.openapi_extra or {}).get("parameters", ())}
    for name, _ in _query(request):
        if name not in known and name.partition("[")[0] not in families:
            raise InvalidInput(
                f"Unknown query parameter {name!r}: nothing by this name is supported.",
                param=name,
                code="unknown_field",
            )


def _query(request: Request) -> list[tuple[str, str]]:
    return request.query_params.multi_items()


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


def _sweeper(request: Request) -> Sweeper:
    sweeper: Sweeper = request.app.state.sweeper
    return sweeper


def _runner(request: Request) -> BatchRunner:
    runner: BatchRunner = request.app.state.batch_runner
    return runner


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


ResourcesDep = Annotated[Resources, Depends(_resources)]
SweeperDep = Annotated[Sweeper, Depends(_sweeper)]
BatchRunnerDep = Annotated[BatchRunner, Depends(_runner)]
PrincipalDep = Annotated[Principal, Depends(_principal)]

AfterQuery = Annotated[
    str | None, Query(description="The id of the last object of the page before.")
]
