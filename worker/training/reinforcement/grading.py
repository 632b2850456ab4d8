"""Grading many answers at once: what grading models are asked is generated together."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.graders import Completion, Grader, GradeResult, ModelPrompt, grading

Answered = Completion | InvalidInput
AskAll = Callable[[Sequence[ModelPrompt]], Sequence[Answered]]

Steps = Generator[ModelPrompt, Completion, GradeResult]


def grade_all(
    grader: Grader, answers: Sequence[tuple[str, Mapping[str, Any]]], ask_all: AskAll
) -> list[GradeResult]:
    """Return the grade of each answer to an item, in the same order.

    Args:
        answers: text and item.
        ask_all: answers prompts to the grading model, or says why it takes one not.
    """
    results: dict[int, GradeResult] = {}
    asking: dict[int, tuple[Steps, ModelPrompt]] = {}

    def advance(place: int, steps: Steps, answered: Answered | None) -> None:
        try:
            if isinstance(answered, InvalidInput):
                prompt = steps.throw(answered)
            else:
                prompt = next(steps) if answered is None else steps.send(answered)
        except StopIteration as end:
            results[place] = end.value
        else:
            asking[place] = steps, prompt

    for place, (text, item) in enumerate(answers):
        advance(place, grading(grader, text, item), None)
    while asking:
        asked, asking = asking, {}
        found = ask_all([prompt for _, prompt in asked.values()])
        for (place, (steps, _)), answered in zip(asked.items(), found, strict=True):
            advance(place, steps, answered)
    return [results[place] for place in range(len(answers))]


def refuse_useless_grader(results: Sequence[GradeResult]) -> None:
    """End a run whose grader cannot grade anything.

    Answers that are not the JSON which a grader reads are no reason: the model may learn to.

    Raises:
        TrainingFailed: with what the grader says.
    """
    errors = [result.errors[0] for result in results if result.errors]
    if len(errors) < len(results) or not errors:
        return
    if all(error.kind == "sample_parse_error" for error in errors):
        return
    worst = next(error for error in errors if error.kind != "sample_parse_error")
    raise TrainingFailed(
        f"the grader {worst.grader!r} failed on every one of {len(results)} answers: "
        f"{worst.message}",
        code="grader_failed",
        param="method.reinforcement.grader",
    )
