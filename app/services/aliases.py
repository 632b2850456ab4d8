"""Aliases: pointing them at versions, going back, and taking them away.

Whoever points an alias, or removes a model, locks the project first: an alias never points at what
is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from app.base_models import Catalogue
from app.db.repositories import adapters, aliases, ensembles
from app.db.repositories.aliases import Alias, NewRevision
from app.db.repositories.keys import Principal
from app.domain.aliases import Shadow, Target, check_targets
from app.domain.errors import Conflict, InvalidInput, ModelInUse, NotFound
from app.domain.task_routes import TASKS_OF_BASE_MODELS


@dataclass(frozen=True, slots=True)
class Change:
    """Where an alias is to point, already checked for types and bounds.

    Attributes:
        expected_revision: the change is refused if another one came first; None: it is made anyway.
        metadata: None leaves it as it is.
    """

    targets: Sequence[Target]
    shadow: Shadow | None
    reason: str | None
    metadata: dict[str, str] | None
    expected_revision: int | None = None


def create(
    connection: Connection, catalogue: Catalogue, principal: Principal, name: str, change: Change
) -> Alias:
    """Add an alias.

    Raises:
        InvalidInput: the name is a base model's, or the targets cannot answer as one.
        NotFound: there is no such model in this project.
        Conflict: there is such an alias.
    """
    if name in catalogue.models:
        raise InvalidInput(
            f"{name!r} is a base model of the operator's: an alias has a name of its own",
            param="name",
        )
    project_id = principal.project_id
    aliases.lock_project(connection, project_id)
    if aliases.find(connection, project_id, name) is not None:
        raise Conflict(
            f"There is an alias {name!r} already: POST /v1/aliases/{name} points it elsewhere.",
            param="name",
            code="alias_exists",
        )
    tasks = _common_tasks(connection, catalogue, project_id, change)
    return aliases.add(
        connection,
        project_id=project_id,
        name=name,
        task=tasks[0],
        metadata=change.metadata,
        revision=_revision(principal, change),
    )


def point(
    connection: Connection, catalogue: Catalogue, principal: Principal, name: str, change: Change
) -> Alias:
    """Let an alias point elsewhere from now on.

    Raises:
        NotFound: there is no such alias or model in this project.
        InvalidInput: the targets cannot answer as one, or not in the alias' task.
        Conflict: somebody else pointed it elsewhere.
    """
    project_id = principal.project_id
    aliases.lock_project(connection, project_id)
    alias = aliases.get(connection, project_id, name)
    _check_expected(alias, change.expected_revision)
    tasks = _common_tasks(connection, catalogue, project_id, change)
    if alias.task not in tasks:
        raise InvalidInput(
            f"the alias {name!r} is for {alias.task}, and these models for {tasks[0]}: make "
            "another alias for them",
            param="targets",
        )
    return aliases.point(connection, alias, _revision(principal, change), change.metadata)


def roll_back(
    connection: Connection,
    catalogue: Catalogue,
    principal: Principal,
    name: str,
    *,
    to: int | None,
    reason: str | None,
    expected_revision: int | None,
) -> Alias:
    """Let an alias point where it did, by a new revision.

    Args:
        to: number of a revision; None: the one before the current one, or before the one that a
            rollback restored: who rolls back twice goes back twice.

    Raises:
        NotFound: there is no such alias or revision.
        InvalidInput: there is no revision before, or it is the current one.
        Conflict: a model that it points at is gone, or somebody else pointed the alias elsewhere.
    """
    project_id = principal.project_id
    aliases.lock_project(connection, project_id)
    alias = aliases.get(connection, project_id, name)
    _check_expected(alias, expected_revision)
    number = _before(connection, alias) if to is None else to
    if number == alias.revision.number:
        raise InvalidInput(f"Revision {number} is the current one.", param="revision")
    earlier = aliases.get_revision(connection, alias, number)
    for model in earlier.models:
        try:
            _tasks(connection, catalogue, project_id, model, "revision")
        except (NotFound, InvalidInput):
            raise Conflict(
                f"Revision {number} of {name!r} needs {model!r}, which is no longer there.",
                param="revision",
                code="model_not_found",
            ) from None
    return aliases.point(
        connection,
        alias,
        NewRevision(
            targets=earlier.targets,
            shadow=earlier.shadow,
            reason=reason,
            created_by=principal.key_id,
            restores=number,
        ),
        None,
    )


def remove(connection: Connection, project_id: str, name: str) -> None:
    """Remove an alias and all that is known of it; its versions stay. Raises: NotFound."""
    aliases.lock_project(connection, project_id)
    aliases.remove(connection, aliases.get(connection, project_id, name))


def keep_needed(connection: Connection, project_id: str, models: Sequence[str]) -> None:
    """Lock the project, and refuse to remove what an alias needs.

    Raises:
        ModelInUse: naming the alias.
    """
    aliases.lock_project(connection, project_id)
    if (alias := aliases.find_needing(connection, project_id, models)) is not None:
        raise ModelInUse(
            f"{models[0]} is needed by the alias {alias}; point that elsewhere first.",
            param="model",
        )


def _revision(principal: Principal, change: Change) -> NewRevision:
    return NewRevision(
        targets=change.targets,
        shadow=change.shadow,
        reason=change.reason,
        created_by=principal.key_id,
    )


def _before(connection: Connection, alias: Alias) -> int:
    """Return the number of the revision that a rollback goes back to. Raises: InvalidInput."""
    revision = alias.revision
    while revision.restores is not None:
        revision = aliases.get_revision(connection, alias, revision.restores)
    if revision.number == 1:
        raise InvalidInput(
            f"The alias {alias.name!r} has not pointed elsewhere before revision 1.",
            param="revision",
        )
    return revision.number - 1


def _check_expected(alias: Alias, expected: int | None) -> None:
    if expected not in (None, alias.revision.number):
        raise Conflict(
            f"The alias {alias.name!r} is at revision {alias.revision.number}, not {expected}: "
            "somebody pointed it elsewhere.",
            param="expected_revision",
            code="revision_changed",
        )


def _common_tasks(
    connection: Connection, catalogue: Catalogue, project_id: str, change: Change
) -> list[str]:
    """Return the tasks that all versions are for, one at least."""
    check_targets(change.targets, change.shadow)
    named = [(one.model, f"targets[{n}].model") for n, one in enumerate(change.targets)]
    if change.shadow is not None:
        named.append((change.shadow.model, "shadow.model"))
    common: list[str] = []
    for number, (model, param) in enumerate(named):
        tasks = _tasks(connection, catalogue, project_id, model, param)
        if number and not set(common) & set(tasks):
            raise InvalidInput(
                f"{model!r} is a model for {' or '.join(tasks)}, and {named[0][0]!r} for "
                f"{' or '.join(common)}: versions of an alias have one task",
                param=param,
            )
        common = [task for task in tasks if not number or task in common]
    return common


def _tasks(
    connection: Connection, catalogue: Catalogue, project_id: str, model: str, param: str
) -> list[str]:
    """Return the tasks that a version answers for: one, unless it is a base model for several."""
    if model.startswith("ft:"):
        found = adapters.find(connection, project_id, model) or ensembles.find(
            connection, project_id, model
        )
        if found is not None:
            return [found.task]
    elif (base := catalogue.models.get(model)) is not None:
        tasks = [task for task in base.tasks if task in TASKS_OF_BASE_MODELS]
        if not tasks:
            raise InvalidInput(
                f"The model {model!r} answers only once it was fine-tuned, for "
                f"{' or '.join(base.tasks)}.",
                param=param,
                code="fine_tuning_required",
            )
        return tasks
    elif aliases.find(connection, project_id, model) is not None:
        raise InvalidInput(f"{model!r} is an alias: name its versions", param=param)
    raise NotFound(
        f"The model {model!r} does not exist or you do not have access to it.",
        param=param,
        code="model_not_found",
    )
