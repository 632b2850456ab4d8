"""Whether fine-tuned models can answer as one: by their rows, and by what lies beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.db.repositories.adapters import Adapter
from app.domain.ensembles import TASKS_WITH_PROBABILITIES
from app.domain.errors import InvalidInput, ModelDamaged, NotFound
from app.domain.tasks import TEXT_GENERATION
from app.storage import Storage

# What lies beside an adapter's weights: see `worker.task_file` and docs/architecture.md.
_TASK_FILE = "task.json"
_CONFIG, _MANIFEST = "adapter_config.json", "manifest.json"


def check_probabilities(storage: Storage, members: Sequence[Adapter]) -> None:
    """Refuse members whose probabilities have no mean.

    Raises:
        InvalidInput: saying which does not fit the first, and why.
        ModelDamaged: files of one cannot be read.
    """
    _check_tasks(members)
    _check_classes(members, [_classes(storage, member) for member in members])


def check_adapters(storage: Storage, members: Sequence[Adapter]) -> None:
    """Refuse members whose updates have no mean that one adapter could be. Raises: as above."""
    _check_shapes(members, [_shape(storage, member) for member in members])


def _check_tasks(members: Sequence[Adapter]) -> None:
    first = members[0]
    if first.task not in TASKS_WITH_PROBABILITIES:
        raise InvalidInput(
            f"{first.name!r} is a model for {first.task}: means are taken of probabilities, which "
            f"models for {' and '.join(TASKS_WITH_PROBABILITIES)} give",
            param="models[0]",
        )
    for number, member in enumerate(members):
        if member.task != first.task:
            raise InvalidInput(
                f"{member.name!r} is a model for {member.task}, and {first.name!r} for "
                f"{first.task}: members have one task",
                param=f"models[{number}]",
            )


def _check_shapes(members: Sequence[Adapter], shapes: Sequence["_Shape"]) -> None:
    first = members[0]
    for number, (member, shape) in enumerate(zip(members, shapes, strict=True)):
        param = f"models[{number}]"
        if member.task != TEXT_GENERATION:
            raise InvalidInput(
                f"{member.name!r} is a model for {member.task}, with a head of its own that no "
                f"other head can be averaged with: adapters are those for {TEXT_GENERATION}",
                param=param,
            )
        if member.base_model != first.base_model:
            raise InvalidInput(
                f"{member.name!r} is an adapter of {member.base_model}, and {first.name!r} of "
                f"{first.base_model}: adapters have one base model",
                param=param,
            )
        if not shape.is_lora:
            raise InvalidInput(
                f"{member.name!r} is no plain LoRA adapter: of others there is no mean",
                param=param,
            )
        if shape.chat_template != shapes[0].chat_template:
            raise InvalidInput(
                f"{member.name!r} was trained under another chat template than {first.name!r}",
                param=param,
            )


def _check_classes(members: Sequence[Adapter], classes: Sequence[Any]) -> None:
    """Refuse members that do not choose from the same classes, in the same way."""
    for number, (member, its) in enumerate(zip(members, classes, strict=True)):
        if its != classes[0]:
            raise InvalidInput(
                f"{member.name!r} predicts {_told(its)}, and {members[0].name!r} "
                f"{_told(classes[0])}: members predict the same",
                param=f"models[{number}]",
            )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What decides whether adapters can be averaged."""

    is_lora: bool
    chat_template: str | None


def _shape(storage: Storage, member: Adapter) -> _Shape:
    """Return how an adapter is made. Raises: ModelDamaged."""
    try:
        directory = storage.directory(member.storage_prefix)
        config_path, manifest_path = directory / _CONFIG, directory / _MANIFEST
        # One whose weights were all trained has no configuration, and a foreign one no manifest.
        config = json.loads(config_path.read_bytes()) if config_path.exists() else {}
        manifest = json.loads(manifest_path.read_bytes()) if manifest_path.exists() else {}
        return _Shape(
            is_lora=config.get("peft_type") == "LORA" and not config.get("use_dora"),
            chat_template=manifest.get("chat_template_sha256"),
        )
    except (OSError, ValueError, AttributeError, NotFound):
        raise _damaged(member) from None


def _classes(storage: Storage, member: Adapter) -> tuple[str, tuple[str, ...]]:
    """Return what kind of problem a model solves, and its labels. Raises: ModelDamaged."""
    try:
        path = storage.directory(member.storage_prefix) / _TASK_FILE
        outline = json.loads(path.read_bytes())["outline"]
        return str(outline.get("problem", "single_label")), tuple(outline["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotFound):
        raise _damaged(member) from None


def _told(classes: tuple[str, tuple[str, ...]]) -> str:
    problem, labels = classes
    if problem == "regression":
        return "a number"
    kind = "any" if problem == "multi_label" else "one"
    return f"{kind} of {', '.join(labels[:10])}{' …' if len(labels) > 10 else ''}"


def _damaged(member: Adapter) -> ModelDamaged:
    return ModelDamaged(f"The stored files of {member.name!r} are damaged; it cannot be a member.")
