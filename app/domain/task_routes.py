"""Which routes answer for which task; the API decides by it early, the built-in engine again."""

from collections.abc import Sequence
from typing import Final

from app.domain.errors import InvalidInput
from app.domain.tasks import TEXT_GENERATION

FEATURE_EXTRACTION = "feature-extraction"
TEXT_CLASSIFICATION = "text-classification"

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
PREDICTIONS: Final = "/v1/predictions"
EMBEDDINGS: Final = "/v1/embeddings"
EXPLANATIONS: Final = "/v1/explanations"
SCORES: Final = "/v1/score"
# Answered by way of chat completions: no engine has it.
RESPONSES: Final = "/v1/responses"

# What a base model can answer as it is. For any other task its head has yet to be trained.
TASKS_OF_BASE_MODELS = (TEXT_GENERATION, FEATURE_EXTRACTION)


def routes_of(task: str) -> tuple[str, ...]:
    """Return the routes that answer with a model of a task."""
    if task == TEXT_GENERATION:
        return (CHAT, COMPLETIONS)
    if task == FEATURE_EXTRACTION:
        return (EMBEDDINGS, PREDICTIONS, SCORES)
    if task == TEXT_CLASSIFICATION:
        return (PREDICTIONS, EXPLANATIONS, SCORES)
    return (PREDICTIONS,)


def refuse_other_route(model: str, task: str, route: str) -> None:
    """Refuse a route that does not answer with models of a task. Raises: InvalidInput."""
    if route == EXPLANATIONS and task != TEXT_CLASSIFICATION:
        raise _unexplained(model, f"is a model for {task}")
    if route not in routes_of(task):
        raise _other_route(model, f"is a model for {task}", routes_of(task))


def refuse_route_of_base(model: str, offered: Sequence[str], route: str) -> None:
    """Refuse a route that does not answer with a base model.

    Args:
        offered: the tasks that it can be fine-tuned for.

    Raises:
        InvalidInput: saying which route does, or that it has to be fine-tuned first.
    """
    routes = [one for task in offered if task in TASKS_OF_BASE_MODELS for one in routes_of(task)]
    if route in routes:
        return
    if route == EXPLANATIONS:
        raise _unexplained(model, "is a base model")
    if routes:
        raise _other_route(model, "is a base model", routes)
    raise InvalidInput(
        f"The model {model!r} answers only once it was fine-tuned, for {' or '.join(offered)}.",
        param="model",
        code="fine_tuning_required",
    )


def _unexplained(model: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"The model {model!r} {what}: explained is what tokens add to the score of a label, which "
        f"only models fine-tuned for {TEXT_CLASSIFICATION} give.",
        param="model",
        code="wrong_route",
    )


def _other_route(model: str, what: str, routes: Sequence[str]) -> InvalidInput:
    return InvalidInput(
        f"The model {model!r} {what}: use {' or '.join(routes)}.",
        param="model",
        code="wrong_route",
    )
