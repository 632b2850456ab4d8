"""Wire types of requests for sweeps."""

import json
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from app.api.schemas.common import Metadata, Request, Text
from app.api.schemas.job_requests import DEFAULT_METHOD, CreateFineTuningJobRequest, MetricName
from app.api.wrong_fields import explain_validation
from app.domain.errors import InvalidInput
from app.domain.search_spaces import Space
from app.domain.sweeps import (
    MAX_PARALLEL,
    MAX_PARAMETERS,
    MAX_TRIALS,
    Algorithm,
    Budget,
    Pruner,
)
from app.services.jobs import MAX_SEED
from app.services.sweeps import SweepRequest

Path = Annotated[Text, Field(max_length=200)]


class SweepBudget(Request):
    """What the sweep may take: past it, no trial is started, and those under way go on."""

    max_trained_tokens: Annotated[
        int | None, Field(ge=1, le=2**53, description="Of all its jobs together.")
    ] = None
    max_seconds: Annotated[
        int | None, Field(ge=1, le=10**9, description="Since the sweep was created.")
    ] = None


class CreateFineTuningSweepRequest(Request):
    """A search for the best hyperparameters of a job."""

    job: Annotated[
        CreateFineTuningJobRequest,
        Field(description="What all trials have in common: a job's request."),
    ]
    parameters: Annotated[
        dict[Path, Space],
        Field(
            min_length=1,
            max_length=MAX_PARAMETERS,
            description="What is searched, by dotted path of the job's field: below "
            "`method.<type>.hyperparameters`, `tunesmith.adapter` or `tunesmith.training`.",
        ),
    ]
    metric: Annotated[
        MetricName | None,
        Field(description="By which trials are compared; the task's main one if absent."),
    ] = None
    algorithm: Annotated[
        Algorithm,
        Field(description="`successive_halving` draws at random and prunes by halving."),
    ] = "tpe"
    pruner: Annotated[
        Pruner | None,
        Field(
            description="What gives up trials that fall behind, at the end of an epoch; if absent, "
            "`none` for a grid, `successive_halving` for that algorithm, else `median`."
        ),
    ] = None
    max_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 12
    max_parallel: Annotated[
        int, Field(ge=1, le=MAX_PARALLEL, description="Trials under way at once.")
    ] = 1
    budget: SweepBudget | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    suffix: (
        Annotated[str, Field(min_length=1, max_length=56, pattern=r"^[A-Za-z0-9._-]+$")] | None
    ) = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _are_apart(self) -> "CreateFineTuningSweepRequest":
        for path in self.parameters:
            for other in self.parameters:
                if other.startswith(f"{path}."):
                    raise ValueError(f"parameters that are apart; {path!r} holds {other!r}")
        return self

    @model_validator(mode="after")
    def _halving_prunes(self) -> "CreateFineTuningSweepRequest":
        if self.algorithm == "successive_halving" and self.pruner not in (
            None,
            "successive_halving",
        ):
            raise ValueError("no 'pruner' beside the algorithm 'successive_halving'")
        return self

    def to_domain(self) -> SweepRequest:
        """Return the sweep, each of whose values a job's request would take.

        Raises:
            InvalidInput: one would not be taken; the parameter is named.
        """
        body = self.job.model_dump(mode="json", by_alias=True, exclude_unset=True)
        first = {path: space.extremes()[0] for path, space in self.parameters.items()}
        _check_values(body, first, None)
        for path, space in self.parameters.items():
            for value in space.extremes()[1:]:
                _check_values(body, first | {path: value}, path)
        adapter = self.job.tunesmith.adapter
        job = self.job.to_domain()
        return SweepRequest(
            # Without the defaults of its type, which may be searched.
            job=replace(job, adapter=adapter.model_dump(exclude_unset=True) if adapter else None),
            body=body,
            spaces=dict(self.parameters),
            metric=self.metric,
            algorithm=self.algorithm,
            pruner=self.pruner,
            max_trials=self.max_trials,
            max_parallel=self.max_parallel,
            budget=Budget(**self.budget.model_dump()) if self.budget else None,
            seed=self.seed,
            suffix=self.suffix,
            metadata=self.metadata,
        )


def _check_values(body: dict[str, Any], values: dict[str, Any], path: str | None) -> None:
    """Refuse values that a job's request would not take.

    Args:
        path: the parameter that is tried; None: all of them are.
    """
    tried = deepcopy(body)
    if any(name.startswith("method.") for name in values):
        tried.setdefault("method", {"type": DEFAULT_METHOD})
    for name, value in values.items():
        _put(tried, name.split("."), value)
    try:
        CreateFineTuningJobRequest.model_validate_json(json.dumps(tried))
    except ValidationError as error:
        found = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
        message, field, code = explain_validation(found, tried, CreateFineTuningJobRequest)
        at_fault = path or next((name for name in values if _is_about(field or "", name)), None)
        param = f"parameters.{at_fault}" if at_fault else "parameters"
        raise InvalidInput(f"{param}: {message}", param=param, code=code) from None


def _is_about(field: str, name: str) -> bool:
    return f"{field}.".startswith(f"{name}.") or f"{name}.".startswith(f"{field}.")


def _put(body: dict[str, Any], path: list[str], value: Any) -> None:
    if len(path) == 1:
        body[path[0]] = value
        return
    below = body.get(path[0])
    body[path[0]] = dict(below) if isinstance(below, dict) else {}
    _put(body[path[0]], path[1:], value)


EXAMPLE = {
    "job": {
        "model": "all-minilm-l6-v2",
        "training_file": "file-Tw54b7HnDeTt6Dephfvwrjef",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    },
    "parameters": {
        "method.supervised.hyperparameters.learning_rate_multiplier": {
            "type": "float",
            "low": 0.1,
            "high": 10.0,
            "log": True,
        },
        "tunesmith.adapter.r": {"type": "categorical", "choices": [4, 8, 16]},
    },
    "metric": "accuracy",
    "algorithm": "tpe",
    "max_trials": 12,
    "max_parallel": 2,
}
