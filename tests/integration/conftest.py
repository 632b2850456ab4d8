"""The sweep's parts, on each engine and with each broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.database import Database
from app.queue import EXPORTS, JOBS
from app.resources import Resources
from app.services.sweeper import Sweeper
from tests.support.sweeping import opened, received


@pytest.fixture(params=["filesystem", "valkey"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "valkey":
        url: str = request.getfixturevalue("valkey_url")
        # Not the database that the worker of a running installation listens on.
        return url.removesuffix("/0") + "/1"
    return f"filesystem://{tmp_path}/broker"


@pytest.fixture
def resources(database: Database, broker_url: str, tmp_path: Path) -> Iterator[Resources]:
    with opened(database, broker_url, tmp_path) as resources:
        # The server of the session may hold what another test sent.
        for line in (JOBS, EXPORTS):
            received(resources, line)
        yield resources


@pytest.fixture
def sweeper(resources: Resources) -> Sweeper:
    return Sweeper(resources)
