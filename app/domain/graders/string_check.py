"""The grader `string_check`: 1 if two texts compare as asked for, else 0."""

from collections.abc import Callable, Mapping
from typing import Literal

from app.domain.graders.grading import Grader, Sample, without_model
from app.domain.graders.templates import parse_template
from app.domain.graders.wire import NamedGrader, Template

Operation = Literal["eq", "ne", "like", "ilike"]

_OPERATIONS: Mapping[Operation, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckGrader(NamedGrader):
    """1 if `input` equals `reference` (eq), differs (ne), or contains it (like, ilike)."""

    type: Literal["string_check"]
    input: Template
    reference: Template
    operation: Operation


def prepare(wire: StringCheckGrader, where: str) -> Grader:
    """Return the grader, ready to run. Raises: InvalidInput, naming the field."""
    text = parse_template(wire.input, f"{where}.input")
    reference = parse_template(wire.reference, f"{where}.reference")
    holds = _OPERATIONS[wire.operation]

    def score(sample: Sample) -> float:
        return float(holds(text.render(sample), reference.render(sample)))

    return Grader(wire, without_model(score))
