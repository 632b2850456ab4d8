"""Ensembles: making one of fine-tuned models, and answering with all of them as with one.

Of a mean of probabilities every member is asked over the engine's port, as any model is, so that
members may have different base models and need not fit into an engine's memory together. A mean of
adapters is an adapter, which the engine makes of its members whenever it loads it: the row is all
that there is of it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from app.db.repositories import adapters, ensembles
from app.db.repositories.adapters import Adapter
from app.db.repositories.ensembles import Ensemble, Member, NewEnsemble
from app.db.repositories.keys import Principal
from app.domain.ensembles import (
    MEAN_ADAPTERS,
    EnsembleMethod,
    mean,
    normalised,
    top_k,
)
from app.domain.errors import InvalidInput, NotFound
from app.domain.ids import fine_tuned_model_name, new_id
from app.domain.task_routes import PREDICTIONS
from app.inference import AdapterFiles, Caller, EngineClient
from app.resources import Resources
from app.services import models
from app.services.aliases import keep_needed
from app.services.ensemble_members import check_adapters, check_probabilities


@dataclass(frozen=True, slots=True)
class EnsembleRequest:
    """An ensemble as its user asked for it, already checked for types and bounds."""

    models: Sequence[str]
    method: EnsembleMethod
    weights: Sequence[float] | None
    suffix: str | None
    metadata: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class EnsembleFiles:
    """An ensemble to answer with, and the files of its members."""

    ensemble: Ensemble
    members: Sequence[AdapterFiles]


def prepare(resources: Resources, principal: Principal, request: EnsembleRequest) -> NewEnsemble:
    """Check what an ensemble is asked of, and return it ready to be added.

    Raises:
        NotFound: there is no such model in this project.
        InvalidInput: the models cannot answer as one; the message says why.
        ModelDamaged: files of one cannot be read.
    """
    weights = normalised(request.weights, len(request.models))
    if len(set(request.models)) < len(request.models):
        raise InvalidInput("'models' names a model twice: give it a weight", param="models")
    catalogue, project_id = resources.catalogue, principal.project_id
    with resources.database.read() as connection:
        members = [
            _member(connection, project_id, name, f"models[{number}]")
            for number, name in enumerate(request.models)
        ]
        base = models.find(connection, catalogue, project_id, members[0].name).base
    check = check_adapters if request.method == MEAN_ADAPTERS else check_probabilities
    check(resources.storage, members)
    return NewEnsemble(
        project_id=project_id,
        model=fine_tuned_model_name(
            base.id, principal.organization_name, request.suffix, new_id("")
        ),
        method=request.method,
        task=members[0].task,
        metadata=request.metadata,
        members=[Member(one.name, weight) for one, weight in zip(members, weights, strict=True)],
    )


def add(connection: Connection, prepared: NewEnsemble) -> Ensemble:
    """Add an ensemble. Raises: NotFound, if a member was deleted in the meantime."""
    names = [member.model for member in prepared.members]
    ensembles.lock_members(connection, names)
    for number, name in enumerate(names):
        _member(connection, prepared.project_id, name, f"models[{number}]")
    return ensembles.add(connection, prepared)


def remove(connection: Connection, project_id: str, ensemble_id: str) -> Ensemble:
    """Remove an ensemble, and return what it was; its members stay.

    Raises:
        NotFound: no such ensemble in this project.
        ModelInUse: an alias needs it.
    """
    ensemble = ensembles.get(connection, project_id, ensemble_id)
    keep_needed(connection, project_id, [ensemble.model])
    ensembles.remove(connection, ensemble.id)
    return ensemble


def locate(resources: Resources, project_id: str, name: str) -> EnsembleFiles | None:
    """Return the ensemble that a name stands for, with its files.

    None if it is no ensemble, or one that answers as an adapter does: see `models.locate`.
    """
    if not name.startswith("ft:"):
        return None
    with resources.database.read() as connection:
        ensemble = ensembles.find(connection, project_id, name)
        if ensemble is None or ensemble.method == MEAN_ADAPTERS:
            return None
        members = [adapters.find(connection, project_id, one.model) for one in ensemble.members]
    storage = resources.storage
    return EnsembleFiles(
        ensemble,
        [
            AdapterFiles(
                member.name,
                storage.directory(member.storage_prefix),
                base_model=member.base_model,
            )
            for member in members
            # The database keeps whatever an ensemble needs.
            if member is not None
        ],
    )


async def predict(
    engine: EngineClient, located: EnsembleFiles, body: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    """Return the mean of what all members predict, in the form of a prediction.

    Members are asked one after the other: an engine computes one at a time in any case, and one
    with room for a single model can then answer, too.

    Raises:
        InvalidInput: a parameter or an input is refused; `param` names it.
        DomainError: as `EngineClient.complete` does, of whichever member.
    """
    ensemble = located.ensemble
    count = top_k(ensemble.task, body.get("parameters") or {})
    answers = []
    for files in located.members:
        asked = {"model": files.name, "inputs": body["inputs"], "parameters": {"top_k": None}}
        answers.append(await engine.complete(PREDICTIONS, asked, files, caller))
    weights = [member.weight for member in ensemble.members]
    each = zip(*(answer["predictions"] for answer in answers), strict=True)
    return {
        "id": new_id("pred-"),
        "object": "prediction",
        "created": int(time.time()),
        "model": ensemble.model,
        "task": ensemble.task,
        "predictions": [mean(predictions, weights)[:count] for predictions in each],
        "truncated_inputs": sorted({one for a in answers for one in a["truncated_inputs"]}),
        "usage": {
            "inputs": answers[0]["usage"]["inputs"],
            "input_tokens": sum(answer["usage"]["input_tokens"] for answer in answers),
        },
    }


def _member(connection: Connection, project_id: str, name: str, param: str) -> Adapter:
    if not name.startswith("ft:"):
        raise InvalidInput(
            f"{name!r} is no fine-tuned model: members of an ensemble are", param=param
        )
    if ensembles.find(connection, project_id, name) is not None:
        raise InvalidInput(
            f"{name!r} is an ensemble: name its members instead, with weights", param=param
        )
    member = adapters.find(connection, project_id, name)
    if member is None:
        raise NotFound(
            f"The model {name!r} does not exist or you do not have access to it.",
            param=param,
            code="model_not_found",
        )
    return member
