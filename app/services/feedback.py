"""Feedback on answers, credited to the version that gave them."""

from sqlalchemy import Connection

from app.db.repositories import aliases, feedback, traffic
from app.db.repositories.feedback import Feedback
from app.domain.errors import NotFound
from app.domain.traffic import Version
from app.resources import Resources
from app.services.traffic import write


def find_version(resources: Resources, project_id: str, answer_id: str) -> Version:
    """Return which version of which alias gave an answer.

    Raises:
        NotFound: no alias of this project gave such an answer, or long ago.
    """
    version = _look(resources, project_id, answer_id)
    if version is None:
        # It may be of this second.
        write(resources)
        version = _look(resources, project_id, answer_id)
    if version is None:
        raise _not_found(answer_id)
    return version


def give(
    connection: Connection,
    version: Version,
    answer_id: str,
    *,
    score: float,
    comment: str | None,
    metadata: dict[str, str] | None,
) -> Feedback:
    """Write feedback down; of an answer the newest counts. Raises: NotFound."""
    aliases.lock_project(connection, version.project_id)
    if not aliases.has(connection, version.project_id, version.alias_id):
        raise _not_found(answer_id)
    return feedback.put(
        connection, version, answer_id, score=score, comment=comment, metadata=metadata
    )


def _look(resources: Resources, project_id: str, answer_id: str) -> Version | None:
    with resources.database.read() as connection:
        return traffic.find_answer(connection, project_id, answer_id)


def _not_found(answer_id: str) -> NotFound:
    return NotFound(
        f"Could not find an answer {answer_id!r} of an alias: feedback is taken on answers that an "
        "alias gave not too long ago.",
        param="completion_id",
    )
