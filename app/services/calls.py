"""Whom a request is for: the version behind its model's name, and the files to answer with."""

import random
from dataclasses import dataclass, replace
from typing import Any

from app.db.repositories import aliases
from app.db.repositories.aliases import Alias
from app.domain.aliases import Shadow, choose
from app.domain.errors import NotFound
from app.domain.task_routes import PREDICTIONS
from app.domain.traffic import Version
from app.inference import AdapterFiles, Caller
from app.inference.port import Route
from app.resources import Resources
from app.services import ensembles, models
from app.services.ensembles import EnsembleFiles


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what is to answer it.

    Attributes:
        version: what the request is counted by.
        body: the request, whose `model` is the version.
        files: None for a base model.
        ensemble: one whose members are asked each; then there are no files.
        shadow: what is to be asked as well, once this is answered.
    """

    version: Version
    caller: Caller
    route: Route
    body: dict[str, Any]
    files: AdapterFiles | None
    ensemble: EnsembleFiles | None
    shadow: Shadow | None = None


def find(resources: Resources, caller: Caller, route: Route, body: dict[str, Any]) -> Call:
    """Return what is to answer a request.

    An alias is looked up anew for each request, so that every process sees a change at once.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the model is for another task than the route.
    """
    alias = _alias(resources, caller, body["model"])
    if alias is None:
        return located(resources, Version(caller.project_id, body["model"]), caller, route, body)
    try:
        return _of_alias(resources, alias, caller, route, body)
    except NotFound:
        # Between the two looks it may have been pointed elsewhere, and the version removed.
        again = _alias(resources, caller, alias.name)
        if again is None or again.revision.id == alias.revision.id:
            raise
        return _of_alias(resources, again, caller, route, body)


def find_instead(resources: Resources, call: Call, body: dict[str, Any]) -> Call | None:
    """Return what is to answer in place of a version that was deleted after it was found.

    Args:
        body: the request as it came.

    Returns:
        None if the version is still there: then something else kept it from answering.

    Raises:
        NotFound: nothing stands in its place.
        InvalidInput: what does is for another task than the route.
    """
    name = call.version.model
    if not name.startswith("ft:"):
        return None
    with resources.database.read() as connection:
        if not models.which_are_gone(connection, [name]):
            return None
    return find(resources, call.caller, call.route, body)


def located(
    resources: Resources, version: Version, caller: Caller, route: Route, body: dict[str, Any]
) -> Call:
    """Return the call of a version. Raises: as `find` does."""
    name, project_id = version.model, caller.project_id
    body = body | {"model": name}
    if caller.priority == "low" and version.role == "answer":
        # How long it waits is no measure of the version.
        version = replace(version, role="batch")
    if route == PREDICTIONS:
        ensemble = ensembles.locate(resources, project_id, name)
        if ensemble is not None:
            return Call(version, caller, route, body, None, ensemble)
    files = models.locate(resources, project_id, name, route)
    return Call(version, caller, route, body, files, None)


def _alias(resources: Resources, caller: Caller, name: str) -> Alias | None:
    if name.startswith("ft:"):
        return None
    with resources.database.read() as connection:
        return aliases.find(connection, caller.project_id, name)


def _of_alias(
    resources: Resources, alias: Alias, caller: Caller, route: Route, body: dict[str, Any]
) -> Call:
    user = body.get("safety_identifier") or body.get("user")
    model = choose(alias.revision.targets, alias.id, user)
    version = Version(alias.project_id, model, alias.id, alias.revision.number)
    call = located(resources, version, caller, route, body)
    shadow = alias.revision.shadow
    if shadow is None or shadow.model == model or call.version.role != "answer":
        return call
    return replace(call, shadow=shadow) if random.random() < shadow.share else call
