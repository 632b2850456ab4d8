"""What a request for a job holds, and the checks of its parts against each other.

Every check raises InvalidInput, naming the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.db.repositories.files import File
from app.domain.datasets import RECORD_KINDS
from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.methods import METHODS, Circumstances
from app.domain.metrics import METRICS
from app.domain.tasks import TASKS
from app.services.models import Model

# Fewer records are all needed for training.
MIN_RECORDS_TO_HOLD_OUT = 50
NEEDS_HELD_OUT_RECORDS = (
    "needs held-out data: give a validation_file, or a holdout above 0 (one is chosen by itself "
    f"from {MIN_RECORDS_TO_HOLD_OUT} records on)"
)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job as its user asked for it, in wire words, already checked for types and bounds."""

    model: str
    training_file: str
    validation_file: str | None
    method: str
    method_settings: dict[str, Any]
    hyperparameters: dict[str, Any]
    task: str | None
    adapter: dict[str, Any] | None
    training: dict[str, Any]
    evaluation: dict[str, Any]
    seed: int | None
    suffix: str | None
    metadata: dict[str, str] | None
    start_file: str | None = None


def check_records(task: str, method: str, file: File, param: str) -> None:
    """Refuse a file of records that the method does not learn from in the task."""
    accepted = TASKS[task].kinds_for(method)
    if file.record_kind not in accepted:
        examples = " or ".join(kind.example for kind in RECORD_KINDS if kind.name in accepted)
        raise InvalidInput(
            f"{param} {file.id} holds {file.record_kind} records; the task {task} and the method "
            f"{method!r} learn from records such as {examples}",
            param=param,
        )


def check_method(
    request: JobRequest, model: Model, adapter: AdapterSpec, files_by_field: Mapping[str, File]
) -> None:
    """Refuse settings of the method that do not go with the rest of the job."""
    settings = METHODS[request.method].settings.model_validate(
        {**request.method_settings, "hyperparameters": request.hyperparameters}
    )
    kinds = {field: file.record_kind or "" for field, file in files_by_field.items()}
    circumstances = Circumstances(
        kinds,
        model.base.id,
        adapter,
        request.training.get("max_length_tokens", model.base.context_length),
        request.training,
    )
    settings.check(circumstances, f"method.{request.method}")


def check_length(request: JobRequest, model: Model) -> None:
    """Refuse longer records than the model takes: they would be cut to less than was asked for."""
    longest = request.training.get("max_length_tokens")
    if longest is not None and longest > model.base.context_length:
        param = "tunesmith.training.max_length_tokens"
        raise InvalidInput(
            f"{param}: {longest} is more than the {model.base.context_length} tokens that "
            f"{model.base.id} takes",
            param=param,
        )


def check_layers(
    request: JobRequest, model: Model, adapter: AdapterSpec, *, is_continued: bool
) -> None:
    """Refuse layers that the base model does not have, as far as its files are here to tell.

    Args:
        is_continued: the adapter is there already, and so are its layers.
    """
    architecture = model.base.architecture
    if architecture is None:
        return
    asked = [] if is_continued else adapter.complete_options().get("target_modules") or []
    if missing := [name for name in asked if name not in architecture.layer_names]:
        known = ", ".join(sorted(architecture.layer_names))
        raise InvalidInput(
            f"{model.base.id} has no layer named {', '.join(missing)}; it has {known}",
            param="tunesmith.adapter.target_modules",
        )
    frozen = request.training.get("freeze_layers", 0)
    if frozen and frozen >= architecture.num_blocks:
        raise InvalidInput(
            f"freeze_layers {frozen} leaves no layer to train: {model.base.id} has "
            f"{architecture.num_blocks}",
            param="tunesmith.training.freeze_layers",
        )


def check_batch_size(request: JobRequest, training_file: File) -> None:
    """Refuse batches that could never be filled."""
    batch_size = request.hyperparameters.get("batch_size", "auto")
    records = training_file.record_count or 0
    if batch_size != "auto" and batch_size > records:
        raise InvalidInput(
            f"batch_size {batch_size} is larger than the {records} records of the training file",
            param=f"method.{request.method}.hyperparameters.batch_size",
        )


def has_held_out_records(request: JobRequest, training_file: File) -> bool:
    """Say whether there will be records to judge the model on."""
    if request.validation_file is not None:
        return True
    holdout = request.evaluation.get("holdout", "auto")
    if holdout == "auto":
        return (training_file.record_count or 0) >= MIN_RECORDS_TO_HOLD_OUT
    return bool(holdout > 0)


def check_metrics(task: str, request: JobRequest) -> None:
    """Refuse to choose or publish by what the task's reports do not have."""
    condition = request.evaluation.get("deploy_if") or {}
    wishes = {
        "tunesmith.evaluation.best_metric": request.evaluation.get("best_metric"),
        "tunesmith.evaluation.deploy_if.metric": condition.get("metric"),
    }
    for param, metric in wishes.items():
        if metric is not None and metric not in TASKS[task].metrics:
            measured = ", ".join(name for name in METRICS if name in TASKS[task].metrics)
            raise InvalidInput(
                f"{param}: {metric!r} is not measured in the task {task}; measured are {measured}",
                param=param,
            )


def check_evaluation(request: JobRequest, training_file: File) -> None:
    """Refuse a choice by held-out data where there will be none."""
    if has_held_out_records(request, training_file):
        return
    wishes = {
        "tunesmith.evaluation.best_metric": request.evaluation.get("best_metric"),
        "tunesmith.evaluation.deploy_if": request.evaluation.get("deploy_if"),
        "tunesmith.training.early_stopping": request.training.get("early_stopping"),
    }
    for param, wish in wishes.items():
        if wish is not None:
            raise InvalidInput(f"{param} {NEEDS_HELD_OUT_RECORDS}", param=param)
