"""The API's entry: `create_app` puts routes, middleware and the sweeper together."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from app.api.access_log import leave_out_probes
from app.api.deps import bearer, refuse_odd_queries
from app.api.errors import add_error_handlers
from app.api.middleware import Authentication, BodyLimit, RequestIds
from app.api.routes import (
    ensembles,
    explanations,
    files,
    graders,
    health,
    inference,
    jobs,
    metrics,
    models,
    predictions,
    sweeps,
)
from app.db.migrations import upgrade
from app.db.repositories.keys import Principal
from app.resources import Resources
from app.services.idempotency import Claims
from app.services.keys import authenticate, create_first_key
from app.services.sweeper import Sweeper
from app.settings import Settings, load_settings

DESCRIPTION = "Fine-tuning as a service that you run yourself, on OpenAI's wire format."

_log = logging.getLogger("tunesmith.api")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; nothing is opened before its lifespan starts."""
    resources = Resources(settings or load_settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        leave_out_probes()
        upgrade(resources.database)
        _announce_first_key(resources)
        app.state.claims = Claims(resources.database)
        app.state.claims.start()
        app.state.sweeper.start()
        yield
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
    app.include_router(health.router)
    app.include_router(metrics.router)
    for routes in (
        files,
        jobs,
        sweeps,
        models,
        ensembles,
        inference,
        predictions,
        explanations,
        graders,
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
