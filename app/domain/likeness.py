"""How alike two answers to one request are: of texts by their letters, of predictions by what they
say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.graders.text_similarity import METRICS
from app.domain.registry import resolve
from app.domain.task_routes import PREDICTIONS

# Comparing takes the product of both lengths; what is longer is compared as far as this.
MAX_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two answers are.

    Attributes:
        is_identical: they say the same in every letter and number.
        similarity: from 0 to 1; of texts the share of characters that stay when one is edited into
            the other, of predictions the share of inputs on which they agree. None: there is no
            measure, as for vectors of different spaces.
    """

    is_identical: bool
    similarity: float | None


def likeness(route: str, answer: Mapping[str, Any], other: Mapping[str, Any]) -> Likeness:
    """Compare two answers of one route."""
    if route == PREDICTIONS:
        pairs = list(zip(answer["predictions"], other["predictions"], strict=False))
        agreed = sum(_said(one) == _said(another) for one, another in pairs)
        return Likeness(
            answer["predictions"] == other["predictions"], agreed / len(pairs) if pairs else None
        )
    texts, others = texts_of(answer), texts_of(other)
    if texts is None or others is None:
        return Likeness(_content(answer) == _content(other), None)
    # By name, so that its library is imported when there is something to compare.
    fuzzy_match = resolve(METRICS["fuzzy_match"])
    measured = [
        fuzzy_match(one[:MAX_CHARACTERS], another[:MAX_CHARACTERS])
        for one, another in zip(texts, others, strict=False)
    ]
    return Likeness(texts == others, sum(measured) / len(measured) if measured else None)


def texts_of(answer: Mapping[str, Any]) -> list[str] | None:
    """Return what each choice of an answer says; None if it is of another kind."""
    if "choices" in answer:
        return [_text_of_choice(choice) for choice in answer["choices"]]
    if "output" in answer:
        parts = [part for item in answer["output"] for part in item.get("content") or ()]
        return ["".join(part.get("text") or "" for part in parts)]
    return None


def _text_of_choice(choice: Mapping[str, Any]) -> str:
    if "text" in choice:
        return choice["text"] or ""
    message = choice.get("message") or {}
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    called = [f"{one.get('name')}({one.get('arguments')})" for one in calls]
    return "\n".join([message.get("content") or message.get("refusal") or "", *called]).strip()


def _said(prediction: Any) -> Any:
    """Return what a prediction says, without how sure it is of that."""
    if isinstance(prediction, list):
        if not all(isinstance(one, Mapping) and "label" in one for one in prediction):
            return [_said(one) for one in prediction]
        if _is_number(prediction):
            return prediction
        return max(prediction, key=lambda one: one.get("score", 0))["label"] if prediction else None
    if isinstance(prediction, Mapping):
        return {name: value for name, value in prediction.items() if name != "score"}
    return prediction


def _is_number(labelled: list[Any]) -> bool:
    """Say whether it is a number that was predicted, which is told under a label that is none."""
    return len(labelled) == 1 and labelled[0]["label"] == "score"


def _content(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer without what differs between any two."""
    heading = ("id", "created", "model", "system_fingerprint", "usage")
    return {name: value for name, value in answer.items() if name not in heading}
