"""Wire types of models."""

from typing import Literal

from app.api.schemas.common import ListObject, Response


class Model(Response):
    """A model that can be called, and that a job can start from."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Response):
    object: ListObject = "list"
    data: list[Model]


class DeletedModel(Response):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
