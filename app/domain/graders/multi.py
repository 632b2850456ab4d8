"""The grader `multi`: a formula over the scores of several graders."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator

from app.domain.errors import InvalidInput
from app.domain.graders.formula import is_name, parse_formula
from app.domain.graders.grading import Grader, GraderError, GradingFailed, Sample, Scores, Scoring
from app.domain.graders.wire import NamedGrader, Text

Prepare = Callable[[NamedGrader, str], Grader]


class MultiGraderBase(NamedGrader):
    """The result of `calculate_output` over the scores of `graders`, which it names.

    It knows `+ - * / ^`, `min`, `max`, `abs`, `floor`, `ceil`, `exp`, `sqrt` and `log`.
    """

    type: Literal["multi"]
    graders: Annotated[dict[str, NamedGrader], Field(min_length=1, max_length=32)]
    calculate_output: Annotated[Text, Field(min_length=1, examples=["0.8 * answer + 0.2 * style"])]

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, graders: Any) -> Any:
        # OpenAI's guide has an object of graders by name; the type of its clients, one grader.
        if isinstance(graders, dict) and isinstance(graders.get("type"), str):
            return {graders.get("name"): graders}
        return graders


def multi_over(graders: Any) -> type[MultiGraderBase]:
    """Make the wire model, over a union of the wire models that may be in it."""
    fields: Any = {"graders": (Annotated[dict[str, graders], *_bounds()], ...)}
    model: type[MultiGraderBase] = create_model(
        "MultiGrader", __base__=MultiGraderBase, __doc__=MultiGraderBase.__doc__, **fields
    )
    return model


def prepare_with(prepare_part: Prepare) -> Callable[[MultiGraderBase, str], Grader]:
    """Return what prepares a `multi`, given what prepares those in it."""

    def prepare(wire: MultiGraderBase, where: str) -> Grader:
        for name in wire.graders:
            if not is_name(name):
                raise InvalidInput(
                    f"Invalid '{where}.graders': no formula can name a grader {name[:64]!r}; "
                    "expected letters, digits and underscores, and none of its functions.",
                    param=f"{where}.graders",
                )
        formula = parse_formula(wire.calculate_output, wire.graders, f"{where}.calculate_output")
        parts = {
            name: prepare_part(part, f"{where}.graders.{name}")
            for name, part in wire.graders.items()
        }

        def score(sample: Sample) -> Scoring:
            rewards: dict[str, float | None] = {}
            errors: list[GraderError] = []
            for name, part in parts.items():
                try:
                    rewards[name] = (yield from part.score(sample)).reward
                except GradingFailed as failed:
                    rewards[name] = None
                    errors.append(GraderError(name, failed.kind, failed.message))
            scored = {name: reward for name, reward in rewards.items() if reward is not None}
            if errors:
                return Scores(None, rewards, tuple(errors))
            try:
                return Scores(formula.evaluate(scored), rewards)
            except InvalidInput as error:
                told = GraderError(wire.name, "formula_parse_error", error.message)
                return Scores(None, rewards, (told,))

        return Grader(wire, score, _models(parts))

    return prepare


def _bounds() -> tuple[Any, ...]:
    return tuple(MultiGraderBase.model_fields["graders"].metadata)


def _models(parts: Mapping[str, Grader]) -> dict[str, str]:
    return {path: model for part in parts.values() for path, model in part.models.items()}
