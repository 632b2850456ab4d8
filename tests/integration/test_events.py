from sqlalchemy import update

from app.db.database import Database
from app.db.repositories import events
from app.db.repositories.events import Event
from app.db.tables import events as event_table
from tests.support.factories import add_job, add_project


def list_all(database: Database, job_id: str, limit: int) -> list[Event]:
    found: list[Event] = []
    while True:
        with database.read() as connection:
            page = events.list_page(
                connection, job_id, after=found[-1].id if found else None, limit=limit
            )
        found += page.items
        if not page.has_more:
            return found


def test_events_come_newest_first_even_those_of_one_moment(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job, other = add_job(connection, project), add_job(connection, project)
        for number in range(7):
            events.add(connection, job.id, f"event {number}")
            events.add(connection, other.id, "elsewhere")
        connection.execute(update(event_table).values(created_at=1.0))
    told = [event.message for event in list_all(database, job.id, limit=3)]
    assert told[:-1] == [f"event {number}" for number in reversed(range(7))]


def test_an_event_keeps_its_numbers(database: Database) -> None:
    numbers = {"step": 3, "train_loss": 0.1 + 0.2, "nothing": None, "name": "é"}
    with database.write() as connection:
        job = add_job(connection, add_project(connection))
        events.add(connection, job.id, "m", level="warn", type="metrics", data=numbers)
        event = events.list_page(connection, job.id, after=None, limit=1).items[0]
    assert (event.level, event.type, event.data) == ("warn", "metrics", numbers)
    assert event.id.startswith("ftevent-")


def test_an_event_without_numbers_has_none(database: Database) -> None:
    with database.write() as connection:
        job = add_job(connection, add_project(connection))
        event = events.list_page(connection, job.id, after=None, limit=1).items[0]
    assert event.data is None
