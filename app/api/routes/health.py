"""Whether the service is alive, ready, and which version it is. No key is needed."""

from importlib.metadata import version as package_version

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app.api.deps import ResourcesDep
from app.api.schemas.common import Response
from app.db.migrations import is_current
from app.resources import Resources

router = APIRouter(tags=["Health"])


class Health(Response):
    status: str


class Readiness(Response):
    """`ready` when jobs can be accepted; an engine that is away does not stop that."""

    status: str
    database: bool
    storage: bool
    engine: bool


class Version(Response):
    version: str


@router.get("/healthz", operation_id="getHealth", summary="Is the process alive?")
def health() -> Health:
    return Health(status="ok")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can requests be served?",
    responses={503: {"model": Readiness, "description": "The database or the storage is away."}},
    response_model=Readiness,
)
async def readiness(resources: ResourcesDep) -> JSONResponse:
    database = await run_in_threadpool(is_current, resources.database)
    storage = await run_in_threadpool(_storage_answers, resources)
    engine = await resources.engine.is_ready()
    ready = database and storage
    body = Readiness(
        status="ready" if ready else "not_ready",
        database=database,
        storage=storage,
        engine=engine,
    )
    return JSONResponse(body.model_dump(), 200 if ready else 503)


@router.get("/version", operation_id="getVersion", summary="Which version runs?")
def version() -> Version:
    return Version(version=package_version("tunesmith"))


def _storage_answers(resources: Resources) -> bool:
    try:
        return resources.storage.free_bytes() > 0
    except OSError:
        return False
