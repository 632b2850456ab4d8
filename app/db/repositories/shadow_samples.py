"""Requests that a shadow was asked, too, and how its answers compare."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import shadow_samples
from app.domain.ids import new_id
from app.domain.intervals import Sums
from app.domain.storable import storable
from app.domain.traffic import ShadowSample


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as it is stored."""

    id: str
    created_at: float
    sample: ShadowSample


@dataclass(frozen=True, slots=True)
class Summary:
    """All samples of a revision.

    Attributes:
        compared: those that both gave an answer to.
        slower_by: seconds that the shadow took longer, of those compared.
    """

    samples: int
    compared: int
    identical: int
    similarity: Sums
    slower_by: Sums


def add(connection: Connection, samples: Sequence[ShadowSample]) -> None:
    if samples:
        rows = [
            # An error may name what was asked.
            asdict(one) | {"id": new_id("shadow-"), "error": one.error and storable(one.error)}
            for one in samples
        ]
        connection.execute(insert(shadow_samples).values(created_at=now()), rows)


def list_page(
    connection: Connection, project_id: str, alias_id: str, *, after: str | None, limit: int
) -> Page[StoredSample]:
    """Return the samples of an alias, newest first."""
    page = fetch_page(
        connection,
        shadow_samples,
        select(shadow_samples).where(
            shadow_samples.c.project_id == project_id, shadow_samples.c.alias_id == alias_id
        ),
        keys=("created_at", "id"),
        after=after,
        limit=limit,
    )
    return Page([_stored(row) for row in page.items], page.has_more)


def summary(connection: Connection, project_id: str, alias_id: str, revision: int) -> Summary:
    """Return what the samples of an alias' revision say together."""
    similarity: Any = shadow_samples.c.similarity
    slower: Any = shadow_samples.c.shadow_seconds - shadow_samples.c.seconds
    is_compared = shadow_samples.c.error.is_(None)
    row = connection.execute(
        select(
            func.count().label("samples"),
            _sum(case((is_compared, 1), else_=0)).label("compared"),
            _sum(case((shadow_samples.c.is_identical, 1), else_=0)).label("identical"),
            func.count(similarity).label("measured"),
            _sum(similarity).label("similarity"),
            _sum(similarity * similarity).label("similarity_squares"),
            _sum(case((is_compared, slower), else_=0.0)).label("slower"),
            _sum(case((is_compared, slower * slower), else_=0.0)).label("slower_squares"),
        ).where(
            shadow_samples.c.project_id == project_id,
            shadow_samples.c.alias_id == alias_id,
            shadow_samples.c.revision == revision,
        )
    ).one()
    return Summary(
        samples=row.samples,
        compared=row.compared,
        identical=row.identical,
        similarity=Sums(row.measured, row.similarity, row.similarity_squares),
        slower_by=Sums(row.compared, row.slower, row.slower_squares),
    )


def remove_before(connection: Connection, age_seconds: float) -> None:
    """Remove samples that are older."""
    connection.execute(
        delete(shadow_samples).where(shadow_samples.c.created_at < now() - age_seconds)
    )


def _stored(row: Any) -> StoredSample:
    return StoredSample(
        row.id,
        row.created_at,
        ShadowSample(**{one.name: row._mapping[one.name] for one in fields(ShadowSample)}),
    )


def _sum(expression: Any) -> Any:
    # Of no row at all the sum is NULL.
    return func.coalesce(func.sum(expression), 0)
