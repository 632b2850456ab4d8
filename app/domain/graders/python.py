"""The grader `python`: known by name, and refused."""

from typing import Annotated, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.graders.grading import Grader
from app.domain.graders.wire import NamedGrader, Text


class PythonGrader(NamedGrader):
    """A script that scores. It is always refused: this version has no sandbox to run it in."""

    type: Literal["python"]
    source: Annotated[Text, Field(min_length=1)]
    image_tag: Text | None = None


def prepare(wire: PythonGrader, where: str) -> Grader:
    """Refuse. Raises: InvalidInput, always."""
    raise InvalidInput(
        "Graders of type 'python' run code of their user, for which this server has no sandbox; "
        "use 'string_check', 'text_similarity', 'score_model' or 'multi'.",
        param=f"{where}.type",
        code="grader_not_enabled",
    )
