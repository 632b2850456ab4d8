"""Ensembles: several models that answer as one, and how their answers become one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from app.domain.errors import InvalidInput

EnsembleMethod = Literal["mean_probabilities", "mean_adapters"]

MAX_MEMBERS = 16

MEAN_ADAPTERS: Final = "mean_adapters"

# What is predicted by classes with a probability each, and how many of them are told by itself:
# as many as by a single model.
TASKS_WITH_PROBABILITIES: Mapping[str, int] = {
    "text-classification": 1,
    "image-classification": 5,
}


def normalised(weights: Sequence[float] | None, members: int) -> list[float]:
    """Return weights that are 1 together; without any, all are alike. Raises: InvalidInput."""
    if weights is None:
        weights = [1.0] * members
    if len(weights) != members:
        raise InvalidInput(
            f"'weights' must be one for each of the {members} models, found {len(weights)}",
            param="weights",
        )
    # The largest first, or their sum could be infinite.
    largest = max(weights)
    total = sum(weight / largest for weight in weights)
    return [weight / largest / total for weight in weights]


def top_k(task: str, parameters: Mapping[str, Any]) -> int | None:
    """Return how many classes are asked for; None is all of them. Raises: InvalidInput."""
    unknown = sorted(set(parameters) - {"top_k"})
    if unknown:
        raise InvalidInput(
            f"'parameters.{unknown[0]}' is not supported: an ensemble takes 'top_k' alone",
            param=f"parameters.{unknown[0]}",
        )
    asked = parameters.get("top_k", TASKS_WITH_PROBABILITIES[task])
    if asked is not None and (type(asked) is not int or asked < 1):
        raise InvalidInput(
            f"'parameters.top_k' must be a whole number above 0 or null, found {asked!r}",
            param="parameters.top_k",
        )
    chosen: int | None = asked
    return chosen


def mean(
    predictions: Sequence[Sequence[Mapping[str, Any]]], weights: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the weighted mean of one input's predictions by several models, the likeliest first.

    Args:
        predictions: of each model, a score for every label.
    """
    scores = [{one["label"]: one["score"] for one in prediction} for prediction in predictions]
    means = {
        label: sum(
            weight * of_model[label] for weight, of_model in zip(weights, scores, strict=True)
        )
        for label in scores[0]
    }
    ordered = sorted(means.items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in ordered]
