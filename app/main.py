"""The API's entry: `create_app` puts routes, middleware, the sweeper and the
runner of batches together."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from app.access_log import leave_out
from app.api.batch_wire import OpenAIWire
from app.api.deps import bearer, refuse_odd_queries
from app.api.errors import add_error_handlers
from app.api.middleware import Authentication, BodyLimit, RequestIds
from app.api.routes import (
    aliases,
    batches,
    ensembles,
    explanations,
    exports,
    files,
    graders,
    health,
    inference,
    jobs,
    metrics,
    models,
    predictions,
    responses,
    sweeps,
    traffic,
)
from app.db.migrations import upgrade
from app.db.repositories.keys import Principal
from app.resources import Resources
from app.services import shadows
from app.services.batches.runner import BatchRunner
from app.services.engine_upkeep import EngineUpkeep
from app.services.idempotency import Claims
from app.services.keys import authenticate, create_first_key
from app.services.sweeper import Sweeper
from app.services.traffic import TrafficWriter
from app.settings import Settings, load_settings

DESCRIPTION = "Fine-tuning as a service that you run yourself, on OpenAI's wire format."

# What a supervisor and a collector of metrics ask all the time.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

_log = logging.getLogger("tunesmith.api")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; nothing is opened before its lifespan starts."""
    resources = Resources(settings or load_settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        leave_out(PROBES)
        upgrade(resources.database)
        _announce_first_key(resources)
        app.state.claims = Claims(resources.database)
        app.state.claims.start()
        app.state.sweeper.start()
        resources.engine.watch()
        app.state.batch_runner.start()
        writer = TrafficWriter(resources)
        writer.start()
        upkeep = EngineUpkeep(resources)
        upkeep.start()
        yield
        await upkeep.close()
        await app.state.batch_runner.close()
        await shadows.close(resources)
        writer.close()
        app.state.sweeper.close()
        app.state.claims.close()
        await resources.engine.close()
        resources.database.engine.dispose()

    app = FastAPI(
        title="Tunesmith",
        version=version("tunesmith"),
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.resources = resources
    app.state.sweeper = Sweeper(resources)
    app.state.batch_runner = BatchRunner(resources, OpenAIWire())
    app.include_router(health.router)
    app.include_router(metrics.router)
    for routes in (
        files,
        jobs,
        sweeps,
        models,
        ensembles,
        aliases,
        exports,
        traffic,
        inference,
        responses,
        predictions,
        explanations,
        graders,
        batches,
    ):
        app.include_router(
            routes.router, dependencies=[Depends(bearer), Depends(refuse_odd_queries)]
        )
    add_error_handlers(app)

    def check_key(key: str | None) -> Principal:
        with resources.database.read() as connection:
            return authenticate(connection, key)

    # The last one added is the first that a request passes through.
    app.add_middleware(
        BodyLimit,
        max_bytes=resources.settings.max_body_bytes,
        uploads={
            # A form adds a little to the file that it carries.
            "/v1/files": resources.settings.max_upload_bytes + 65_536,
            "/v1/predictions": resources.settings.max_prediction_bytes,
        },
    )
    app.add_middleware(Authentication, authenticate=check_key)
    app.add_middleware(RequestIds)
    return app


def _announce_first_key(resources: Resources) -> None:
    with resources.database.write() as connection:
        key = create_first_key(connection, resources.settings.organization)
    if key is not None:
        # To the terminal and not to the log: it is shown once and kept nowhere.
        print(
            f"\nYour first API key, shown this once:\n\n  {key}\n\n"
            "`tunesmith keys create` makes another.\n",
            file=sys.stderr,
            flush=True,
        )
