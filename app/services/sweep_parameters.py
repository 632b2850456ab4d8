"""From the values of a trial, named by paths of the wire, to the job that has them."""

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from app.domain.errors import InvalidInput
from app.domain.methods import METHODS
from app.domain.peft_kinds import LORA, PEFT_KINDS
from app.services.job_checks import JobRequest


def with_parameters(request: JobRequest, parameters: dict[str, Any]) -> JobRequest:
    """Return a job whose fields, named by dotted paths of the wire, have these values.

    Raises:
        InvalidInput: the values do not go together; the field is named.
    """
    changed: dict[str, Any] = {
        "hyperparameters": request.hyperparameters,
        "method_settings": request.method_settings,
        "adapter": request.adapter,
        "training": request.training,
    }
    for path, value in parameters.items():
        field, keys_below = locate(path)
        changed[field] = _set(changed[field], keys_below, value)
    job = replace(request, **changed)
    _check(METHODS[job.method].settings, _settings(job), f"method.{job.method}")
    if job.adapter is not None:
        options = {key: value for key, value in job.adapter.items() if key != "type"}
        _check(PEFT_KINDS[job.adapter.get("type", LORA)].options, options, "tunesmith.adapter")
    return job


def locate(path: str) -> tuple[str, list[str]]:
    """Return the field of a JobRequest that a path of the wire leads into, and the way from there.

    Raises:
        InvalidInput: it leads to nothing that can be searched.
    """
    match path.split("."):
        case ["method", _, "hyperparameters", *below] if below:
            return "hyperparameters", below
        case ["method", _, *below] if below:
            return "method_settings", below
        case ["tunesmith", "adapter", *below]:
            return "adapter", below
        case ["tunesmith", "training", *below] if below:
            return "training", below
    raise InvalidInput(
        f"parameters.{path} cannot be searched: expected a field below "
        "method.<type>.hyperparameters, tunesmith.adapter or tunesmith.training",
        param=f"parameters.{path}",
        code="unknown_field",
    )


def _set(value: Any, below: list[str], new: Any) -> Any:
    if not below:
        return new
    fields = value if isinstance(value, dict) else {}
    return fields | {below[0]: _set(fields.get(below[0]), below[1:], new)}


def _settings(job: JobRequest) -> dict[str, Any]:
    return {**job.method_settings, "hyperparameters": job.hyperparameters}


def _check(model: Any, value: dict[str, Any], param: str) -> None:
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([param, *(str(part) for part in first["loc"])])
        raise InvalidInput(f"{field}: {first['msg']}", param=field) from None
