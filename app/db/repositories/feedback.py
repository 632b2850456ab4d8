"""Scores that answers were given by those who got them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import alias_feedback
from app.domain.ids import new_id
from app.domain.intervals import Sums
from app.domain.traffic import Version


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was thought of one answer."""

    id: str
    project_id: str
    alias_id: str
    revision: int
    model: str
    answer_id: str
    score: float
    comment: str | None
    metadata: dict[str, str] | None
    created_at: float


def put(
    connection: Connection,
    version: Version,
    answer_id: str,
    *,
    score: float,
    comment: str | None,
    metadata: dict[str, str] | None,
) -> Feedback:
    """Write what is thought of an answer now, in place of what was thought before."""
    connection.execute(
        delete(alias_feedback).where(
            alias_feedback.c.project_id == version.project_id,
            alias_feedback.c.answer_id == answer_id,
        )
    )
    row = connection.execute(
        insert(alias_feedback)
        .values(
            id=new_id("feedback-"),
            project_id=version.project_id,
            alias_id=version.alias_id,
            revision=version.revision,
            model=version.model,
            answer_id=answer_id,
            score=score,
            comment=comment,
            metadata=metadata,
            created_at=now(),
        )
        .returning(alias_feedback)
    ).one()
    return Feedback(**row._mapping)


def list_page(
    connection: Connection, project_id: str, alias_id: str, *, after: str | None, limit: int
) -> Page[Feedback]:
    """Return what was thought of the answers of an alias, newest first."""
    page = fetch_page(
        connection,
        alias_feedback,
        select(alias_feedback).where(
            alias_feedback.c.project_id == project_id, alias_feedback.c.alias_id == alias_id
        ),
        keys=("created_at", "id"),
        after=after,
        limit=limit,
    )
    return Page([Feedback(**row._mapping) for row in page.items], page.has_more)


def sums(connection: Connection, project_id: str, alias_id: str, revision: int) -> dict[str, Sums]:
    """Return the scores of each version of an alias' revision."""
    score: Any = alias_feedback.c.score
    rows = connection.execute(
        select(
            alias_feedback.c.model,
            func.count().label("count"),
            func.sum(score).label("total"),
            func.sum(score * score).label("squares"),
        )
        .where(
            alias_feedback.c.project_id == project_id,
            alias_feedback.c.alias_id == alias_id,
            alias_feedback.c.revision == revision,
        )
        .group_by(alias_feedback.c.model)
    )
    return {row.model: Sums(row._mapping["count"], row.total, row.squares) for row in rows}
