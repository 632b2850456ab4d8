"""What a model name stands for: a base model of the catalogue, or an adapter of the project.

Which version an alias stands for is decided for each request, in `calls`.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection

from app.base_models import BaseModel, Catalogue
from app.db.repositories import adapters, aliases, ensembles, exports, jobs, sweeps
from app.db.repositories.adapters import Adapter
from app.domain.ensembles import MEAN_ADAPTERS
from app.domain.errors import InvalidInput, ModelInUse, NotFound
from app.domain.task_routes import (
    CHAT,
    COMPLETIONS,
    PREDICTIONS,
    refuse_other_route,
    refuse_route_of_base,
)
from app.domain.tasks import TEXT_GENERATION
from app.inference import AdapterFiles, MemberFiles
from app.inference.port import Route
from app.resources import Resources
from app.services.aliases import keep_needed


@dataclass(frozen=True, slots=True)
class Model:
    """A name that can be called or trained from; `adapter` is None for the base model itself."""

    base: BaseModel
    adapter: Adapter | None


def find(connection: Connection, catalogue: Catalogue, project_id: str, name: str) -> Model:
    """Return what a name stands for in this project.

    Raises:
        NotFound: there is no such model.
        InvalidInput: it is an ensemble or an alias, which have no weights of their own.
    """
    # First, so that a base model which is added later does not take its requests.
    _refuse_alias(connection, project_id, name)
    return find_version(connection, catalogue, project_id, name)


def find_version(connection: Connection, catalogue: Catalogue, project_id: str, name: str) -> Model:
    """Return what a name stands for that is no alias. Raises: as `find` does."""
    if not name.startswith("ft:"):
        return Model(catalogue.get(name), None)
    adapter = adapters.find(connection, project_id, name)
    if adapter is None and ensembles.find(connection, project_id, name) is not None:
        raise InvalidInput(
            f"The model {name!r} is an ensemble, which can be called and nothing else: use "
            f"{PREDICTIONS} or, if it is a mean of adapters, {CHAT} or {COMPLETIONS}.",
            param="model",
            code="wrong_route",
        )
    if adapter is None or adapter.base_model not in catalogue.models:
        raise NotFound(
            f"The model {name!r} does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
        )
    return Model(catalogue.get(adapter.base_model), adapter)


def locate(resources: Resources, project_id: str, name: str, route: Route) -> AdapterFiles | None:
    """Return the files of the fine-tuned model that is to answer; None for a base model.

    Args:
        name: no alias: see `calls.find`.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the model is for another task than the route.
    """
    catalogue = resources.catalogue
    with resources.database.read() as connection:
        mean = _mean_of_adapters(connection, project_id, name)
        if not mean:
            found = find_version(connection, catalogue, project_id, name)
    if mean:
        refuse_other_route(name, TEXT_GENERATION, route)
        members = [
            MemberFiles(resources.storage.directory(one.storage_prefix), weight)
            for one, weight in mean
        ]
        return AdapterFiles(name, members[0].directory, members, mean[0][0].base_model)
    if found.adapter is None:
        refuse_route_of_base(name, found.base.tasks, route)
        return None
    refuse_other_route(name, found.adapter.task, route)
    return files_of(resources, found.adapter)


def files_of(resources: Resources, adapter: Adapter) -> AdapterFiles:
    """Return where an engine finds an adapter."""
    directory = resources.storage.directory(adapter.storage_prefix)
    return AdapterFiles(adapter.name, directory, base_model=adapter.base_model)


def remove(connection: Connection, catalogue: Catalogue, project_id: str, name: str) -> str | None:
    """Remove the name of a fine-tuned model, or of the model of a checkpoint.

    With a fine-tuned model goes the name of its last checkpoint, which has the same weights.

    Returns:
        The storage prefix of the checkpoint that no name stands for any more: the caller's to
        delete after the commit. None if another name still does.

    Raises:
        NotFound: no such model in this project.
        InvalidInput: it is a base model.
        ModelInUse: a job, a sweep or an export that has not ended needs it, an ensemble, or an
            alias.
    """
    adapter = find(connection, catalogue, project_id, name).adapter
    if adapter is None:
        raise InvalidInput(
            f"{name!r} is a base model of the operator's; only fine-tuned models of your own "
            "can be deleted",
            param="model",
        )
    if sweeps.is_model_needed(connection, project_id, name) or jobs.is_adapter_needed(
        connection, adapter.job_id, adapter.storage_prefix
    ):
        raise ModelInUse(
            f"{name} is needed by a fine-tuning job or a sweep that has not ended; "
            "cancel it or wait for it, then delete the model.",
            param="model",
        )
    going = names_that_go_with(connection, adapter)
    keep_needed(connection, project_id, going)
    ensembles.lock_members(connection, going)
    if (ensemble := ensembles.find_needing(connection, going)) is not None:
        raise ModelInUse(
            f"{name} is needed by the ensemble {ensemble}; delete that first.", param="model"
        )
    if (export := exports.find_reading(connection, adapter.storage_prefix)) is not None:
        raise ModelInUse(
            f"{name} is needed by the export {export}; cancel it or wait for it, then delete the "
            "model.",
            param="model",
        )
    adapters.remove(connection, project_id, name)
    if adapter.is_final:
        adapters.remove_prefix(connection, adapter.storage_prefix)
    # Should the content outlive a crash, the next sweep finds it.
    jobs.sweep_again(connection, adapter.job_id)
    if adapters.has_prefix(connection, adapter.storage_prefix):
        return None
    return adapter.checkpoint_prefix


def _refuse_alias(connection: Connection, project_id: str, name: str) -> None:
    alias = None if name.startswith("ft:") else aliases.find(connection, project_id, name)
    if alias is not None:
        versions = ", ".join(target.model for target in alias.revision.targets)
        raise InvalidInput(
            f"The model {name!r} is an alias, which can be called and nothing else: name one of "
            f"its versions, {versions}.",
            param="model",
            code="alias",
        )


def names_that_go_with(connection: Connection, adapter: Adapter) -> list[str]:
    """Return a model's name, and those that are removed together with it."""
    return [adapter.name, *(_other_names(connection, adapter) if adapter.is_final else ())]


def which_are_gone(connection: Connection, names: Collection[str]) -> set[str]:
    """Return those of some names of fine-tuned models that stand for nothing any more."""
    left = set(names) - adapters.existing(connection, names)
    return left - ensembles.existing(connection, left)


def _mean_of_adapters(
    connection: Connection, project_id: str, name: str
) -> list[tuple[Adapter, float]]:
    """Return the adapters whose weighted mean a name stands for; none if it is no such name."""
    ensemble = ensembles.find(connection, project_id, name) if name.startswith("ft:") else None
    if ensemble is None or ensemble.method != MEAN_ADAPTERS:
        return []
    members = [(adapters.find(connection, project_id, m.model), m.weight) for m in ensemble.members]
    # The database keeps whatever an ensemble needs.
    return [(adapter, weight) for adapter, weight in members if adapter is not None]


def _other_names(connection: Connection, adapter: Adapter) -> list[str]:
    """Return the names beside its own that stand for the weights of a model."""
    of_job = adapters.list_of_job(connection, adapter.job_id)
    return [
        one.name
        for one in of_job
        if one.storage_prefix == adapter.storage_prefix and one.name != adapter.name
    ]
