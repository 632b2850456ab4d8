"""Wire types of what versions answered, counted."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Response
from app.db.repositories.traffic import Counted
from app.domain.alias_report import sums_of
from app.domain.intervals import Estimate, mean
from app.domain.traffic import Durations, Role, Tally


class IntervalEstimate(Response):
    """A number with its interval of 95 %; null where too little is known."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Estimate) -> "IntervalEstimate":
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)


class DurationSummary(Response):
    """How long answers took, in seconds; quantiles are right to within 5 %."""

    count: int
    mean: IntervalEstimate
    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, durations: Durations) -> "DurationSummary":
        return cls(
            count=durations.count,
            mean=IntervalEstimate.of(mean(sums_of(durations))),
            p50=durations.quantile(0.5),
            p95=durations.quantile(0.95),
            p99=durations.quantile(0.99),
        )


class Counts(Response):
    """How many requests went how."""

    requests: int
    answered: int
    failed: Annotated[int, Field(description="Through no fault of the request.")]
    refused: Annotated[int, Field(description="By the request's fault, or since queues were full.")]
    cancelled: Annotated[int, Field(description="Their clients went away.")]
    prompt_tokens: int
    completion_tokens: int
    latency_seconds: DurationSummary
    first_token_seconds: Annotated[DurationSummary, Field(description="Of streams.")]


def counts_of(tally: Tally) -> dict[str, Any]:
    """Return the fields of `Counts`."""
    return {
        "requests": tally.requests,
        "answered": tally.answered,
        "failed": tally.failed,
        "refused": tally.refused,
        "cancelled": tally.cancelled,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "latency_seconds": DurationSummary.of(tally.durations),
        "first_token_seconds": DurationSummary.of(tally.first_tokens),
    }


class ModelUsage(Counts):
    """What a model has answered: called by its own name, or by one revision of an alias."""

    object: Literal["model.usage"] = "model.usage"
    model: str
    alias: str | None
    revision: int | None
    role: Annotated[
        Role,
        Field(
            description="`answer`: somebody waited. `batch`: at low priority. `shadow`: compared "
            "and not given."
        ),
    ]
    dropped: Annotated[int, Field(description="Requests that a shadow had no time for.")]
    updated_at: int

    @classmethod
    def of(cls, counted: Counted, alias: str | None) -> "ModelUsage":
        version, tally = counted.version, counted.tally
        return cls(
            model=version.model,
            alias=alias,
            revision=version.revision or None,
            role=version.role,
            dropped=tally.dropped,
            updated_at=int(counted.updated_at),
            **counts_of(tally),
        )


class ModelUsageList(Response):
    object: ListObject = "list"
    data: list[ModelUsage]
