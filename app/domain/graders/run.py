"""Reading a grader, and running it on a sample."""

from collections.abc import Generator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.domain.errors import InvalidInput
from app.domain.graders.grading import (
    Complete,
    Completion,
    Grader,
    GraderError,
    GradeResult,
    GradingFailed,
    ModelPrompt,
    Sample,
    Scores,
    TokenUsage,
)
from app.domain.graders.registry import GraderModel, prepare_grader
from app.domain.graders.wire import NamedGrader

_WIRE: TypeAdapter[NamedGrader] = TypeAdapter(GraderModel)


def parse_grader(value: Any, where: str = "grader") -> Grader:
    """Read a grader from its JSON.

    Args:
        where: the path of the grader in the request, for messages.

    Raises:
        InvalidInput: naming the field, such as `grader.graders.a.operation`.
    """
    try:
        wire = _WIRE.validate_python(value)
    except ValidationError as error:
        raise _explained(error, value, where) from None
    return prepare_grader(wire, where)


def grade(
    grader: Grader, sample_text: str, item: Mapping[str, Any], *, complete: Complete
) -> GradeResult:
    """Grade one sample; what goes wrong is in the result's `errors`.

    Args:
        sample_text: what the model answered.
        item: the fields of the dataset's record, which templates know as `item`.
        complete: asks a model, where the grader needs one.

    Raises:
        DomainError: as `complete` does, but for InvalidInput.
    """
    steps = grading(grader, sample_text, item)
    try:
        prompt = next(steps)
        while True:
            try:
                completion = complete(prompt)
            except InvalidInput as error:
                prompt = steps.throw(error)
            else:
                prompt = steps.send(completion)
    except StopIteration as end:
        result: GradeResult = end.value
        return result


def grading(
    grader: Grader, sample_text: str, item: Mapping[str, Any]
) -> Generator[ModelPrompt, Completion, GradeResult]:
    """As `grade`, for who cannot answer a prompt on the spot.

    It yields each prompt and is sent its completion; InvalidInput is thrown into it where a model
    cannot take the prompt.
    """
    usage: dict[str, TokenUsage] = {}
    try:
        scores = yield from _counted(grader, Sample(sample_text, item), usage)
    except GradingFailed as failed:
        told = GraderError(grader.wire.name, failed.kind, failed.message)
        scores = Scores(None, {}, (told,))
    reward = 0.0 if scores.reward is None else scores.reward
    return GradeResult(reward, scores.sub_rewards, scores.errors, usage)


def _counted(
    grader: Grader, sample: Sample, usage: dict[str, TokenUsage]
) -> Generator[ModelPrompt, Completion, Scores]:
    """Pass prompts and completions on, and count their tokens."""
    steps = grader.score(sample)
    try:
        prompt = next(steps)
        while True:
            try:
                completion = yield prompt
            except InvalidInput as error:
                prompt = steps.throw(error)
                continue
            usage[prompt.model] = usage.get(prompt.model, TokenUsage()).plus(completion)
            prompt = steps.send(completion)
    except StopIteration as end:
        scores: Scores = end.value
        return scores


def _explained(error: ValidationError, value: Any, where: str) -> InvalidInput:
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    is_field = first["type"] in ("missing", "extra_forbidden")
    path = _path(first["loc"], value, where, is_field)
    if first["type"] == "union_tag_invalid":
        expected, tag = first["ctx"]["expected_tags"], first["ctx"]["tag"]
        path = f"{path}.type"
        return InvalidInput(f"Invalid {path!r}: expected {expected}, found {tag!r}.", param=path)
    if first["type"] == "union_tag_not_found":
        path = f"{path}.type"
    if first["type"] in ("missing", "union_tag_not_found"):
        message = f"Missing required field {path!r}."
        return InvalidInput(message, param=path, code="missing_required_field")
    if first["type"] == "extra_forbidden":
        message = f"Unknown field {path!r}: nothing by this name is supported."
        return InvalidInput(message, param=path, code="unknown_field")
    same = [one["msg"] for one in found if _path(one["loc"], value, where, is_field) == path]
    told = " or ".join(dict.fromkeys(message[:1].lower() + message[1:] for message in same))
    return InvalidInput(f"Invalid {path!r}: {told}.", param=path)


def _path(location: tuple[int | str, ...], value: Any, where: str, is_field: bool) -> str:
    """Return the path of a field, without the union members that pydantic names in it.

    Args:
        is_field: the last part is a field, whether it is there or not.
    """
    path = where
    for index, part in enumerate(location):
        if isinstance(value, Mapping) and part in value:
            value, path = value[part], f"{path}.{part}"
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value, path = value[part], f"{path}[{part}]"
        elif is_field and index == len(location) - 1:
            path = f"{path}.{str(part)[:64]}"
    return path
