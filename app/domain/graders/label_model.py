"""The grader `label_model`: a model is asked for one of several labels."""

import json
from typing import Annotated, Literal

from pydantic import Field

from app.domain.errors import InvalidInput
from app.domain.graders.grading import Grader, GradingFailed, Sample, Sampling, Scores, Scoring
from app.domain.graders.model_input import (
    Messages,
    parse_messages,
    refuse_refusals,
    refused_prompt,
    result_of,
)
from app.domain.graders.wire import NamedGrader, Text

Labels = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=128)]],
    Field(min_length=1, max_length=64),
]


class LabelModelGrader(NamedGrader):
    """1 if the model chooses one of `passing_labels`, else 0. Only among those of a `multi`."""

    type: Literal["label_model"]
    model: Annotated[Text, Field(min_length=1, description="A base or a fine-tuned model.")]
    input: Messages
    labels: Labels
    passing_labels: Labels


def prepare(wire: LabelModelGrader, where: str) -> Grader:
    """Return the grader, ready to run. Raises: InvalidInput, naming the field."""
    strange = [label for label in wire.passing_labels if label not in wire.labels]
    if strange:
        raise InvalidInput(
            f"Invalid '{where}.passing_labels': {strange[0]!r} is none of 'labels'.",
            param=f"{where}.passing_labels",
        )
    listed = ", ".join(json.dumps(label, ensure_ascii=False) for label in wire.labels)
    conversation = parse_messages(
        wire.model,
        wire.input,
        Sampling(),
        f'Answer with a JSON object {{"result": <one of {listed}>}}.',
        f"{where}.input",
    )

    def score(sample: Sample) -> Scoring:
        try:
            completion = yield conversation.prompt(sample)
        except InvalidInput as error:
            raise refused_prompt(error) from None
        refuse_refusals(completion)
        return Scores(float(_label(completion.text, wire.labels) in wire.passing_labels))

    return Grader(wire, score, {f"{where}.model": wire.model})


def _label(text: str, labels: list[str]) -> str:
    bare = text.strip()
    label = bare if bare in labels else result_of(text, ("result", "label"))
    if label not in labels:
        raise GradingFailed(
            "model_grader_parse_error",
            f"expected one of the labels, the model answered {str(label)[:80]!r}",
        )
    return str(label)
