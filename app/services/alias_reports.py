"""The report of an alias: its versions side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from app.db.repositories import aliases, feedback, shadow_samples, traffic
from app.db.repositories.aliases import Alias, Revision
from app.db.repositories.shadow_samples import Summary
from app.domain.alias_report import Comparison, Record, compare
from app.domain.errors import InvalidInput
from app.domain.intervals import Sums
from app.domain.traffic import Tally, Version


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """How a shadow compares with whatever answered."""

    model: str
    share: float
    tally: Tally
    summary: Summary


@dataclass(frozen=True, slots=True)
class Report:
    """How the versions of one revision did since it began."""

    alias: Alias
    revision: Revision
    baseline: str
    records: Sequence[Record]
    comparisons: Sequence[Comparison]
    shadow: ShadowReport | None


def report(
    connection: Connection, project_id: str, name: str, number: int | None, baseline: str | None
) -> Report:
    """Return the report of a revision.

    Args:
        number: of the revision; None: the current one.
        baseline: the version that others are compared with; None: that of the largest weight.

    Raises:
        NotFound: there is no such alias or revision.
        InvalidInput: the baseline is no target of the revision.
    """
    alias = aliases.get(connection, project_id, name)
    revision = alias.revision
    if number is not None:
        revision = aliases.get_revision(connection, alias, number)
    tallies = traffic.of_revision(connection, project_id, alias.id, revision.number)
    by_model = {one.model: tally for one, tally in tallies.items() if one.role == "answer"}
    scores = feedback.sums(connection, project_id, alias.id, revision.number)
    records = [
        Record(
            target.model,
            target.weight,
            by_model.get(target.model, Tally()),
            scores.get(target.model, Sums()),
        )
        for target in revision.targets
    ]
    base = _baseline(records, baseline)
    shadow = None
    if revision.shadow is not None:
        model = revision.shadow.model
        version = Version(project_id, model, alias.id, revision.number, "shadow")
        shadow = ShadowReport(
            model,
            revision.shadow.share,
            tallies.get(version, Tally()),
            shadow_samples.summary(connection, project_id, alias.id, revision.number),
        )
    return Report(alias, revision, base.model, records, compare(records, base), shadow)


def _baseline(records: Sequence[Record], asked: str | None) -> Record:
    if asked is None:
        # The first of the largest.
        return max(records, key=lambda one: one.weight)
    for one in records:
        if one.model == asked:
            return one
    raise InvalidInput(
        f"{asked!r} is no target of this revision; expected one of "
        f"{', '.join(one.model for one in records)}",
        param="baseline",
    )
