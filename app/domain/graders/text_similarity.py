"""The grader `text_similarity`: how near a text comes to a reference, by a metric of a library."""

from collections.abc import Callable
from typing import Literal

from app.domain.errors import InvalidInput
from app.domain.graders.grading import Grader, GradingFailed, Sample, without_model
from app.domain.graders.templates import parse_template
from app.domain.graders.wire import NamedGrader, PassThreshold, Template
from app.domain.registry import Registry, resolve

# Longer texts would hold a thread for long: some metrics compare every word with every other.
MAX_CHARACTERS = 50_000

EvaluationMetric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]
Metric = Callable[[str, str], float]

# Each entry names a function of (text, reference), by path: the libraries take a second to import.
METRICS: Registry[str] = Registry("metric of text similarity")
METRICS.add("fuzzy_match", "app.domain.graders.similarity.fuzzy_match:fuzzy_match")
METRICS.add("bleu", "app.domain.graders.similarity.bleu:bleu")
METRICS.add("gleu", "app.domain.graders.similarity.gleu:gleu")
METRICS.add("rouge_1", "app.domain.graders.similarity.rouge:rouge_1")
METRICS.add("rouge_2", "app.domain.graders.similarity.rouge:rouge_2")
METRICS.add("rouge_3", "app.domain.graders.similarity.rouge:rouge_3")
METRICS.add("rouge_4", "app.domain.graders.similarity.rouge:rouge_4")
METRICS.add("rouge_5", "app.domain.graders.similarity.rouge:rouge_5")
METRICS.add("rouge_l", "app.domain.graders.similarity.rouge:rouge_l")

# Metrics of OpenAI's that are not here, and why.
NOT_HERE = {
    "cosine": "it needs an embedding model, and graders here have none",
    "meteor": "it needs the WordNet dictionary, which is not among what is installed",
}


class TextSimilarityGrader(NamedGrader):
    """How similar `input` is to `reference`, from 0 to 1. `cosine` and `meteor` are refused."""

    type: Literal["text_similarity"]
    input: Template
    reference: Template
    evaluation_metric: EvaluationMetric
    pass_threshold: PassThreshold | None = None


def prepare(wire: TextSimilarityGrader, where: str) -> Grader:
    """Return the grader, ready to run. Raises: InvalidInput, naming the field."""
    name = wire.evaluation_metric
    if name in NOT_HERE:
        raise InvalidInput(
            f"{name!r} is not supported: {NOT_HERE[name]}; expected one of {', '.join(METRICS)}.",
            param=f"{where}.evaluation_metric",
            code="metric_not_supported",
        )
    text = parse_template(wire.input, f"{where}.input")
    reference = parse_template(wire.reference, f"{where}.reference")

    def score(sample: Sample) -> float:
        metric: Metric = resolve(METRICS[name])
        return metric(_bounded(text.render(sample)), _bounded(reference.render(sample)))

    return Grader(wire, without_model(score))


def _bounded(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise GradingFailed(
            "truncated_observation_error",
            f"a text to compare is longer than {MAX_CHARACTERS:,} characters",
        )
    return text
