"""Reading an installation's rows, through the repositories that the service itself has."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from app.db.repositories import events, files, jobs
from app.db.repositories.events import Event
from app.db.repositories.jobs import Job
from app.db.repositories.pages import Page
from app.domain.job_state import TERMINAL
from app.services.files import RESULTS


def list_jobs(connection: Connection, project_id: str) -> Sequence[Job]:
    """Return every job of a project, newest first."""
    return _all(
        lambda after: jobs.list_page(
            connection,
            project_id,
            metadata=None,
            without_metadata=False,
            after=after,
            limit=100,
        )
    )


def list_unfinished(connection: Connection, project_id: str) -> Sequence[Job]:
    return [job for job in list_jobs(connection, project_id) if job.status not in TERMINAL]


def story_of(connection: Connection, job_id: str) -> Sequence[Event]:
    """Return every event of a job, oldest first."""
    newest_first = _all(lambda after: events.list_page(connection, job_id, after=after, limit=500))
    return newest_first[::-1]


def list_results(connection: Connection, project_id: str) -> Sequence[str]:
    """Return the ids of every file of results."""
    found = _all(
        lambda after: files.list_page(
            connection, project_id, purpose=RESULTS, after=after, limit=500, order="asc"
        )
    )
    return [file.id for file in found]


def _all(fetch: Callable[[str | None], Page[Any]]) -> list[Any]:
    """Return the items of every page."""
    found: list[Any] = []
    while True:
        page = fetch(found[-1].id if found else None)
        found += page.items
        if not page.has_more:
            return found
