"""The registry of graders, from which wire types, validation and what runs them derive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import Field

from app.domain.graders import (
    label_model,
    multi,
    python,
    score_model,
    string_check,
    text_similarity,
)
from app.domain.graders.grading import Grader
from app.domain.graders.wire import NamedGrader
from app.domain.registry import Registry


@dataclass(frozen=True, slots=True)
class GraderKind:
    """One way to grade.

    Attributes:
        model: its wire type.
        prepare: checks a wire object, whose path in the request is the second argument, and makes
            it ready to run; raises InvalidInput.
        only_in_multi: it does not stand alone, as with OpenAI.
    """

    model: type[NamedGrader]
    prepare: Callable[[Any, str], Grader]
    only_in_multi: bool = False


GRADERS: Registry[GraderKind] = Registry("type of grader")


def prepare_grader(wire: NamedGrader, where: str = "grader") -> Grader:
    """Check what types cannot say, and return the grader ready to run.

    Args:
        where: the path of the grader in the request, for messages.

    Raises:
        InvalidInput: naming the field.
    """
    kind = next(kind for kind in GRADERS.values() if isinstance(wire, kind.model))
    return kind.prepare(wire, where)


def _union(kinds: list[GraderKind]) -> Any:
    models = tuple(kind.model for kind in kinds)
    return Annotated[Union[models], Field(discriminator="type")]  # noqa: UP007 - made at run time.


GRADERS.add("string_check", GraderKind(string_check.StringCheckGrader, string_check.prepare))
GRADERS.add(
    "text_similarity",
    GraderKind(text_similarity.TextSimilarityGrader, text_similarity.prepare),
)
GRADERS.add("score_model", GraderKind(score_model.ScoreModelGrader, score_model.prepare))
GRADERS.add(
    "label_model",
    GraderKind(label_model.LabelModelGrader, label_model.prepare, only_in_multi=True),
)
GRADERS.add("python", GraderKind(python.PythonGrader, python.prepare))
# Last: it is made of those above, and of no other like itself.
MultiGrader = multi.multi_over(_union(list(GRADERS.values())))
GRADERS.add("multi", GraderKind(MultiGrader, multi.prepare_with(prepare_grader)))

# Any grader that stands alone, as a field of a request.
GraderModel: Any = _union([kind for kind in GRADERS.values() if not kind.only_in_multi])
