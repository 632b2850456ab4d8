"""Wire types of the report of an alias, and of what its shadows said."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Response
from app.api.schemas.traffic import Counts, IntervalEstimate, counts_of
from app.db.repositories.shadow_samples import StoredSample
from app.domain.alias_report import Comparison, Measure, Record, Verdict
from app.domain.intervals import CONFIDENCE, mean, share
from app.services.alias_reports import Report, ShadowReport


class FeedbackSummary(Response):
    count: int
    mean: IntervalEstimate


class VersionReport(Counts):
    """How one version did."""

    model: str
    weight: float
    error_rate: Annotated[
        IntervalEstimate, Field(description="Of those answered and failed, the failed ones.")
    ]
    feedback: FeedbackSummary

    @classmethod
    def of(cls, record: Record) -> "VersionReport":
        tally = record.tally
        return cls(
            model=record.model,
            weight=record.weight,
            error_rate=IntervalEstimate.of(share(tally.failed, record.judged)),
            feedback=FeedbackSummary(
                count=record.feedback.count, mean=IntervalEstimate.of(mean(record.feedback))
            ),
            **counts_of(tally),
        )


class VersionComparison(Response):
    """How a version differs from the baseline in one measure."""

    model: str
    measure: Measure
    difference: IntervalEstimate
    count: int
    baseline_count: int
    verdict: Annotated[
        Verdict, Field(description="`better` or `worse` only if the whole interval says so.")
    ]
    text: str

    @classmethod
    def of(cls, comparison: Comparison) -> "VersionComparison":
        return cls(
            model=comparison.model,
            measure=comparison.measure,
            difference=IntervalEstimate.of(comparison.difference),
            count=comparison.count,
            baseline_count=comparison.baseline_count,
            verdict=comparison.verdict,
            text=comparison.text,
        )


class ShadowSummary(Counts):
    """How the answers of a shadow compare with those that were given."""

    model: str
    share: float
    dropped: Annotated[int, Field(description="Requests that there was no time for.")]
    compared: Annotated[int, Field(description="Samples of which both answered, still kept.")]
    identical: Annotated[IntervalEstimate, Field(description="Share of answers that are equal.")]
    similarity: Annotated[
        IntervalEstimate,
        Field(
            description="Of texts the share of letters that stay when one is edited into the "
            "other, of predictions the share of inputs on which both agree."
        ),
    ]
    slower_by_seconds: Annotated[
        IntervalEstimate,
        Field(description="How much longer the shadow took, waiting at low priority included."),
    ]

    @classmethod
    def of(cls, shadow: ShadowReport) -> "ShadowSummary":
        tally, summary = shadow.tally, shadow.summary
        return cls(
            model=shadow.model,
            share=shadow.share,
            dropped=tally.dropped,
            compared=summary.compared,
            identical=IntervalEstimate.of(share(summary.identical, summary.compared)),
            similarity=IntervalEstimate.of(mean(summary.similarity)),
            slower_by_seconds=IntervalEstimate.of(mean(summary.slower_by)),
            **counts_of(tally),
        )


class AliasReport(Response):
    """The versions of one revision of an alias, side by side."""

    object: Literal["alias.report"] = "alias.report"
    alias: str
    revision: int
    since: int
    confidence: float = CONFIDENCE
    baseline: str
    versions: list[VersionReport]
    comparisons: list[VersionComparison]
    shadow: ShadowSummary | None

    @classmethod
    def of(cls, report: Report) -> "AliasReport":
        return cls(
            alias=report.alias.name,
            revision=report.revision.number,
            since=int(report.revision.created_at),
            baseline=report.baseline,
            versions=[VersionReport.of(one) for one in report.records],
            comparisons=[VersionComparison.of(one) for one in report.comparisons],
            shadow=None if report.shadow is None else ShadowSummary.of(report.shadow),
        )


class ShadowSampleObject(Response):
    """A request that a shadow was asked, too."""

    id: str
    object: Literal["alias.shadow_sample"] = "alias.shadow_sample"
    created_at: int
    revision: int
    route: str
    model: Annotated[str, Field(description="The version whose answer was given.")]
    shadow_model: str
    seconds: float
    shadow_seconds: float
    completion_tokens: int
    shadow_completion_tokens: int
    is_identical: bool | None
    similarity: float | None
    error: Annotated[str | None, Field(description="Why the shadow gave no answer.")]
    contents: Annotated[
        dict[str, Any] | None,
        Field(
            description="`request`, `answer` and `shadow_answer`, where the alias says "
            "`record_contents`."
        ),
    ]

    @classmethod
    def of(cls, stored: StoredSample) -> "ShadowSampleObject":
        sample = stored.sample
        return cls(
            id=stored.id,
            created_at=int(stored.created_at),
            revision=sample.revision,
            route=sample.route,
            model=sample.model,
            shadow_model=sample.shadow_model,
            seconds=sample.seconds,
            shadow_seconds=sample.shadow_seconds,
            completion_tokens=sample.completion_tokens,
            shadow_completion_tokens=sample.shadow_completion_tokens,
            is_identical=sample.is_identical,
            similarity=sample.similarity,
            error=sample.error,
            contents=None if sample.contents is None else json.loads(sample.contents),
        )


class ShadowSampleList(Response):
    object: ListObject = "list"
    data: list[ShadowSampleObject]
    has_more: bool
