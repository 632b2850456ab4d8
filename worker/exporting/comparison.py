"""Comparing what an export computes with what the fine-tuned model computes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from app.domain.errors import ExportFailed
from app.domain.exports import Limit


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two models' outputs lie apart; None where a number is not finite.

    Attributes:
        relative_difference: norm of the difference over that of the numbers.
        mean_kl: mean over rows of the divergence from the model's distribution to the export's,
            in nats; None where the outputs are no distributions.
    """

    max_abs_logit_difference: float | None
    relative_difference: float | None
    mean_kl: float | None

    def is_within(self, limit: Limit) -> bool:
        """Say whether an export may be published."""
        within = _is_at_most(self.relative_difference, limit.relative_difference)
        if limit.max_abs_logit_difference is not None:
            within &= _is_at_most(self.max_abs_logit_difference, limit.max_abs_logit_difference)
        return within and (self.mean_kl is None or self.mean_kl <= limit.mean_kl)


class Reference:
    """What the fine-tuned model computes.

    Args:
        outputs: [rows, numbers] float32 each; rows of one number are no distributions.
    """

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self._outputs = list(outputs)

    def compare(self, outputs: Iterable[Tensor]) -> Comparison:
        """Compare with the outputs of an export for the same inputs.

        Raises:
            ExportFailed: there are more or fewer, or they have other shapes.
        """
        largest = squares = norm = divergence = 0.0
        rows = count = 0
        for expected, found in zip(self._outputs, _as_many(self._outputs, outputs), strict=True):
            if found.shape != expected.shape:
                raise ExportFailed(
                    "loaded back, the export's outputs have another shape than the model's: "
                    f"{list(found.shape)}, not {list(expected.shape)}"
                )
            difference = (found.double() - expected.double()).abs()
            # `max` of a NaN is a NaN in torch, and of neither side in Python.
            largest = _larger(largest, float(difference.max()))
            squares += float((difference**2).sum())
            norm += float((expected.double() ** 2).sum())
            if expected.shape[-1] > 1:
                ours, theirs = (one.double().log_softmax(-1) for one in (expected, found))
                divergence += float((ours.exp() * (ours - theirs)).sum())
                rows += expected.shape[0]
            count += 1
        if not count:
            raise ExportFailed("there was nothing to compare the export with the model on")
        return Comparison(
            max_abs_logit_difference=_shown(largest),
            relative_difference=_shown(math.sqrt(squares / norm) if norm else squares),
            mean_kl=_shown(max(divergence / rows, 0.0)) if rows else None,
        )


def _as_many(expected: list[Tensor], found: Iterable[Tensor]) -> Iterable[Tensor]:
    count = 0
    for one in found:
        count += 1
        if count <= len(expected):
            yield one
    if count != len(expected):
        raise ExportFailed(
            f"loaded back, the export gives {count} outputs where the model gives {len(expected)}"
        )


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _is_at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _shown(value: float) -> float | None:
    """Return a number as JSON can hold it; None if it is not finite."""
    return value if math.isfinite(value) else None
