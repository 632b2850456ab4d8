"""Names of classes, in one order for all that is trained and served."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from app.domain.errors import InvalidInput
from worker.tasks import Example


def ordered_labels(names: Iterable[str]) -> list[str]:
    """Return class names in order: numbers by their value, words by the alphabet."""
    chosen = list(names)
    if all(name.lstrip("-").isdigit() for name in chosen):
        return sorted(chosen, key=int)
    return sorted(chosen)


def class_weights(
    asked: Literal["balanced"] | Mapping[str, float],
    labels: Sequence[str],
    examples: Sequence[Example],
) -> Tensor:
    """Return [classes] float32, the weight of each class in the loss.

    `balanced` is scikit-learn's: examples / (classes x examples of the class).

    Raises:
        InvalidInput: a name is none of the classes.
    """
    if asked != "balanced":
        if unknown := sorted(set(asked) - set(labels)):
            raise InvalidInput(
                f"class_weights names {unknown[0]!r}; the classes are {', '.join(labels[:20])}",
                param="tunesmith.training.class_weights",
            )
        return torch.tensor([asked.get(label, 1.0) for label in labels])
    counts = Counter(number for example in examples for number in _classes_of(example.target))
    total = sum(counts.values())
    return torch.tensor([total / (len(labels) * max(counts[n], 1)) for n in range(len(labels))])


def _classes_of(target: Any) -> Iterable[int]:
    """Return the classes of a target: one, those that hold, or one for each token."""
    if isinstance(target, int):
        return [target]
    if target and isinstance(target[0], float):
        return [number for number, held in enumerate(target) if held]
    return [number for number in target if number >= 0]
