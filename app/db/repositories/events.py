"""Events of jobs: what people read to know how a job goes."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select

from app.db.clock import now
from app.db.repositories.pages import Page, fetch_page
from app.db.tables import events
from app.domain.ids import new_id

Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's story; `type` is message or metrics."""

    sequence: int
    id: str
    job_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


def add(
    connection: Connection,
    job_id: str,
    message: str,
    *,
    level: Level = "info",
    type: Literal["message", "metrics"] = "message",
    data: dict[str, Any] | None = None,
) -> None:
    connection.execute(
        insert(events).values(
            id=new_id("ftevent-"),
            job_id=job_id,
            created_at=now(),
            level=level,
            type=type,
            message=message,
            data=data,
        )
    )


def list_page(connection: Connection, job_id: str, *, after: str | None, limit: int) -> Page[Event]:
    """Return the job's events, newest first."""
    page = fetch_page(
        connection,
        events,
        select(events).where(events.c.job_id == job_id),
        keys=("sequence",),
        after=after,
        limit=limit,
    )
    return Page([Event(**row._mapping) for row in page.items], page.has_more)
