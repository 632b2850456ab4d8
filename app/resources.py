"""The one composition root: settings become live parts."""

import logging
from dataclasses import dataclass
from functools import cached_property

from celery import Celery

from app.base_models import Catalogue, described, load_catalogue
from app.db.database import Database, open_database
from app.domain.errors import InvalidInput, Unavailable
from app.inference import EngineRouter, open_engine
from app.queue import make_celery
from app.settings import Settings
from app.storage import Storage, open_storage
from app.traffic import Traffic

_log = logging.getLogger("tunesmith")


@dataclass(frozen=True)
class Resources:
    """Live parts of one process, each opened when it is first used.

    Attributes:
        read_only: change nothing in the database, and make none that is not there.
    """

    settings: Settings
    read_only: bool = False

    @cached_property
    def database(self) -> Database:
        return open_database(self.settings.database_url, read_only=self.read_only)

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.settings.storage_url)

    @cached_property
    def celery(self) -> Celery:
        return make_celery(self.settings.broker_url)

    @cached_property
    def engine(self) -> EngineRouter:
        return open_engine(self.settings)

    @cached_property
    def traffic(self) -> Traffic:
        return Traffic()

    @property
    def catalogue(self) -> Catalogue:
        # Read anew each time: an operator adds a model while the service runs.
        try:
            return load_catalogue(self.settings.catalogue_path)
        except InvalidInput as error:
            # The operator's mistake, and none of the caller's.
            _log.error("the catalogue cannot be read: %s", error.message)
            raise Unavailable("The operator's catalogue of base models cannot be read.") from error

    @property
    def described_catalogue(self) -> Catalogue:
        """The same with the architectures of the base models that are installed on this machine."""
        return described(self.catalogue, self.settings.models_dir)
