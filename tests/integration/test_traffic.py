"""Writing down what was answered, on each engine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from app.db.database import Database
from app.db.repositories import aliases, feedback, shadow_samples
from app.db.repositories import traffic as rows
from app.db.repositories.aliases import Alias
from app.domain.errors import DatabaseUnavailable, NotFound
from app.domain.task_routes import SCORES
from app.domain.traffic import Observation, ShadowSample, Tally, Version
from app.resources import Resources
from app.services import feedback as feedback_service
from app.services.traffic import TrafficWriter, forget_old, write
from app.settings import load_settings
from app.traffic import AliasAnswer
from tests.support.factories import BASE_MODEL, add_alias, add_project


@pytest.fixture
def alias(database: Database) -> Alias:
    with database.write() as connection:
        return add_alias(connection, add_project(connection), [BASE_MODEL])


@pytest.fixture
def version(alias: Alias) -> Version:
    return Version(alias.project_id, BASE_MODEL, alias.id, 1)


def opened(database: Database, directory: Path) -> Resources:
    url = database.engine.url.render_as_string(hide_password=False)
    settings = load_settings({"TUNESMITH_DATA_DIR": str(directory)})
    return Resources(replace(settings, database_url=url))


@pytest.fixture
def processes(database: Database, tmp_path: Path) -> Iterator[list[Resources]]:
    """What two API processes hold."""
    two = [opened(database, tmp_path) for _ in range(2)]
    yield two
    for one in two:
        one.database.engine.dispose()


def counted(database: Database, version: Version) -> Tally:
    with database.read() as connection:
        return rows.of_revision(
            connection, version.project_id, version.alias_id, version.revision
        ).get(version, Tally())


def test_processes_that_write_at_once_lose_no_count(
    database: Database, processes: list[Resources], version: Version
) -> None:
    other = replace(version, model="another")

    def work(resources: Resources) -> None:
        for number in range(20):
            for one in (version, other) if number % 2 else (other, version):
                resources.traffic.count(one, Observation("answered", 0.5, 9, 4, 0.25))
            write(resources)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(work, processes))
    for one in (version, other):
        tally = counted(database, one)
        assert (tally.requests, tally.prompt_tokens, tally.completion_tokens) == (40, 360, 160)
        assert (tally.durations.total, tally.first_tokens.count) == (20.0, 40)


def test_what_cannot_be_written_is_written_later(
    database: Database, processes: list[Resources], version: Version, tmp_path: Path
) -> None:
    away = Resources(replace(processes[0].settings, database_url="postgresql://127.0.0.1:1/none"))
    away.traffic.count(version, Observation("answered", 0.5, 9, 4))
    away.traffic.note_answer(AliasAnswer("chatcmpl-1", version))
    with pytest.raises(DatabaseUnavailable):
        write(away)
    away.traffic.count(version, Observation("failed", 0.5))
    taken = away.traffic.take()
    processes[0].traffic.put_back(taken)
    write(processes[0])
    tally = counted(database, version)
    assert (tally.requests, tally.answered, tally.failed) == (2, 1, 1)
    with database.read() as connection:
        assert rows.find_answer(connection, version.project_id, "chatcmpl-1") == version


def test_an_error_that_names_what_was_asked_keeps_nothing_from_being_written(
    database: Database, processes: list[Resources], version: Version
) -> None:
    sample = ShadowSample(
        project_id=version.project_id,
        alias_id=version.alias_id,
        revision=version.revision,
        route=SCORES,
        model=version.model,
        shadow_model="another",
        seconds=0.5,
        shadow_seconds=0.5,
        completion_tokens=0,
        shadow_completion_tokens=0,
        is_identical=None,
        similarity=None,
        error="no label 'a\x00\ud83d'",
        contents=None,
    )
    processes[0].traffic.note_sample(sample)
    processes[0].traffic.count(version, Observation("answered", 0.5))
    write(processes[0])
    assert counted(database, version).requests == 1
    with database.read() as connection:
        page = shadow_samples.list_page(
            connection, version.project_id, version.alias_id, after=None, limit=2
        )
    assert [one.sample.error for one in page.items] == ["no label 'a\\x00\\ud83d'"]


def test_what_is_left_is_written_at_the_end(
    database: Database, processes: list[Resources], version: Version
) -> None:
    writer = TrafficWriter(processes[0])
    writer.start()
    processes[0].traffic.count(version, Observation("answered", 0.5))
    writer.close()
    assert counted(database, version).requests == 1


def test_many_answers_are_written_and_the_newest_of_an_id_counts(
    database: Database, version: Version
) -> None:
    newer = replace(version, revision=2)
    answers = [(f"chatcmpl-{number}", version) for number in range(2_500)]
    with database.write() as connection:
        rows.add_answers(connection, [*answers, ("chatcmpl-7", newer)])
        rows.add_answers(connection, [("chatcmpl-8", newer)])
    with database.read() as connection:
        found = [
            rows.find_answer(connection, version.project_id, f"chatcmpl-{number}")
            for number in (2_499, 7, 8)
        ]
        foreign = rows.find_answer(connection, "proj_other", "chatcmpl-7")
    assert found == [version, newer, newer]
    assert foreign is None


def test_feedback_is_credited_to_the_version_and_replaced(
    database: Database, processes: list[Resources], version: Version
) -> None:
    # It was answered this very second: not written yet.
    processes[0].traffic.note_answer(AliasAnswer("chatcmpl-1", version))
    found = feedback_service.find_version(processes[0], version.project_id, "chatcmpl-1")
    assert found == version
    for score in (0.5, -1.0):
        with database.write() as connection:
            feedback_service.give(
                connection, found, "chatcmpl-1", score=score, comment=None, metadata=None
            )
    with database.read() as connection:
        sums = feedback.sums(connection, version.project_id, version.alias_id, 1)
    assert {model: (one.count, one.total) for model, one in sums.items()} == {BASE_MODEL: (1, -1.0)}
    with pytest.raises(NotFound):
        feedback_service.find_version(processes[0], "proj_other", "chatcmpl-1")


def test_an_old_answer_and_one_of_a_deleted_alias_take_no_feedback(
    database: Database, processes: list[Resources], alias: Alias, version: Version
) -> None:
    with database.write() as connection:
        rows.add_answers(connection, [("old", version), ("orphan", version)])
        rows.add(connection, {version: Tally(requests=1)})
    forget_old(database, 3_600)
    found = feedback_service.find_version(processes[0], version.project_id, "orphan")
    with database.write() as connection:
        aliases.remove(connection, alias)
    with pytest.raises(NotFound), database.write() as connection:
        feedback_service.give(connection, found, "orphan", score=1, comment=None, metadata=None)
    with database.write() as connection:
        rows.add_answers(connection, [("old", version)])
    forget_old(database, -1)
    with pytest.raises(NotFound):
        feedback_service.find_version(processes[0], version.project_id, "old")
    # What was counted of it went with it.
    assert counted(database, version) == Tally()
