"""Tallies of what versions answered, and which version gave which answer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import now
from app.db.tables import alias_answers, model_traffic
from app.domain.traffic import Tally, Version

# Parameters of one statement, of which Postgres takes 65,535 and SQLite 32,766.
_ANSWERS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Counted:
    """A version and what it has answered so far."""

    version: Version
    tally: Tally
    updated_at: float


def add(connection: Connection, tallies: Mapping[Version, Tally]) -> None:
    """Add to what was counted before. The rows stay locked until the end of the transaction."""
    # In one order everywhere, so that two processes do not wait for each other.
    for version in sorted(tallies, key=repr):
        key = asdict(version)
        empty = _insert(connection, model_traffic).values(
            **key, tally=Tally().as_json(), updated_at=now()
        )
        connection.execute(empty.on_conflict_do_nothing())
        is_this = [model_traffic.c[name] == value for name, value in key.items()]
        query = select(model_traffic.c.tally).where(*is_this).with_for_update()
        tally = Tally.of_json(connection.execute(query).scalar_one())
        tally.merge(tallies[version])
        connection.execute(
            update(model_traffic).where(*is_this).values(tally=tally.as_json(), updated_at=now())
        )


def list_of_project(connection: Connection, project_id: str) -> list[Counted]:
    """Return what was counted in a project, by model."""
    query = select(model_traffic).where(model_traffic.c.project_id == project_id)
    return _counted(connection, query.order_by(*model_traffic.primary_key.columns))


def of_revision(
    connection: Connection, project_id: str, alias_id: str, revision: int
) -> dict[Version, Tally]:
    """Return what the versions of an alias' revision have answered."""
    query = select(model_traffic).where(
        model_traffic.c.project_id == project_id,
        model_traffic.c.alias_id == alias_id,
        model_traffic.c.revision == revision,
    )
    return {one.version: one.tally for one in _counted(connection, query)}


def add_answers(connection: Connection, answers: Sequence[tuple[str, Version]]) -> None:
    """Write down which version gave which answer; of one id the newest counts."""
    # A statement cannot write a row twice.
    rows = {(version.project_id, answer_id): version for answer_id, version in answers}
    values = [
        {
            "project_id": project_id,
            "answer_id": answer_id,
            "alias_id": version.alias_id,
            "revision": version.revision,
            "model": version.model,
            "created_at": now(),
        }
        for (project_id, answer_id), version in sorted(rows.items(), key=lambda item: item[0])
    ]
    for start in range(0, len(values), _ANSWERS_AT_ONCE):
        statement = _insert(connection, alias_answers).values(
            values[start : start + _ANSWERS_AT_ONCE]
        )
        replaced = ("alias_id", "revision", "model", "created_at")
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[alias_answers.c.project_id, alias_answers.c.answer_id],
                set_={name: statement.excluded[name] for name in replaced},
            )
        )


def find_answer(connection: Connection, project_id: str, answer_id: str) -> Version | None:
    """Return which version of an alias gave an answer."""
    row = connection.execute(
        select(alias_answers).where(
            alias_answers.c.project_id == project_id, alias_answers.c.answer_id == answer_id
        )
    ).one_or_none()
    if row is None:
        return None
    return Version(project_id, row.model, row.alias_id, row.revision)


def remove_answers_before(connection: Connection, age_seconds: float) -> None:
    """Forget which version gave answers that are older."""
    connection.execute(
        delete(alias_answers).where(alias_answers.c.created_at < now() - age_seconds)
    )


def _counted(connection: Connection, query: Select[Any]) -> list[Counted]:
    return [
        Counted(
            Version(row.project_id, row.model, row.alias_id, row.revision, row.role),
            Tally.of_json(row.tally),
            row.updated_at,
        )
        for row in connection.execute(query)
    ]


def _insert(connection: Connection, table: Table) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
