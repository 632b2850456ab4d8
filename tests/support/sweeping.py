"""Jobs that wait for a sweep, and what a sweep made of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.db.database import Database
from app.db.repositories import events, jobs
from app.db.repositories.jobs import Job
from app.queue import JOBS, Line
from app.resources import Resources
from app.settings import load_settings
from tests.support.factories import add_job, add_project, add_queued_job, store_dataset


@contextmanager
def opened(
    database: Database, broker_url: str, directory: Path, **changes: Any
) -> Iterator[Resources]:
    settings = replace(
        load_settings({"TUNESMITH_DATA_DIR": str(directory)}),
        database_url=database.engine.url.render_as_string(hide_password=False),
        broker_url=broker_url,
        max_attempts=2,
        **changes,
    )
    resources = Resources(settings)
    yield resources
    resources.database.engine.dispose()
    resources.celery.close()


def received(resources: Resources, line: Line = JOBS) -> list[str]:
    """Take every message from the broker and return the ids in them, in no special order."""
    ids = []
    with resources.celery.connection_for_read() as connection:
        channel = connection.default_channel
        while message := channel.basic_get(line.queue, no_ack=True):
            assert message.headers["task"] == line.task
            arguments, named, _ = json.loads(message.body)
            assert named == {}
            ids += arguments
    return sorted(ids)


def queued(resources: Resources, count: int = 1) -> list[Job]:
    with resources.database.write() as connection:
        project = add_project(connection)
        return [add_queued_job(connection, project) for _ in range(count)]


def new_job(resources: Resources, content: bytes | None = None) -> Job:
    """Add a job whose training file is stored."""
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project, content)
        return add_job(connection, project, training_file=file.id, seed=7)


def now_is(resources: Resources, job: Job) -> Job:
    with resources.database.read() as connection:
        return jobs.get(connection, job.project_id, job.id)


def told(resources: Resources, job: Job) -> list[str]:
    with resources.database.read() as connection:
        page = events.list_page(connection, job.id, after=None, limit=100)
    return [event.message for event in page.items][::-1]
