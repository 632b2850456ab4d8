"""What a model name stands for: a base model of the catalogue, or an adapter of the project."""

from dataclasses import dataclass

from sqlalchemy import Connection

from app.base_models import BaseModel, Catalogue
from app.db.repositories import adapters
from app.db.repositories.adapters import Adapter
from app.domain.errors import NotFound


@dataclass(frozen=True, slots=True)
class Model:
    """A name that can be called or trained from; `adapter` is None for the base model itself."""

    base: BaseModel
    adapter: Adapter | None


def find(connection: Connection, catalogue: Catalogue, project_id: str, name: str) -> Model:
    """Return what a name stands for in this project. Raises: NotFound."""
    if not name.startswith("ft:"):
        return Model(catalogue.get(name), None)
    adapter = adapters.find(connection, project_id, name)
    if adapter is None or adapter.base_model not in catalogue.models:
        raise NotFound(
            f"The model {name!r} does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
        )
    return Model(catalogue.get(adapter.base_model), adapter)
