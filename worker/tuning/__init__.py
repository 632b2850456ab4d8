"""What is trained of a whole model: an adapter of any kind that `peft` has, or every weight.

Text generation by plain LoRA does without: it is trained on the shared trunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Weights that are updated at one rate.

    Attributes:
        rate: over that of the run.
    """

    weights: Sequence[tuple[str, nn.Parameter]]
    rate: float = 1.0


class Tuning(Protocol):
    """A model and what is trained of it.

    Attributes:
        model: to be called; it computes with what is trained.
    """

    model: nn.Module

    def groups(self) -> Sequence[WeightGroup]:
        """Return everything that is trained, in an order that never changes."""

    def as_base(self) -> AbstractContextManager[None]:
        """Within it the model computes as it did before training; without gradients only."""

    def before_update(self, step: int) -> Tensor | None:
        """Return what the kind of adapter adds to the loss of a step; None adds nothing."""

    def after_update(self, step: int) -> None:
        """Do what the kind of adapter does once its gradients were applied, before they go."""

    def save(self, directory: Path, base_model_name: str) -> None:
        """Write what is served, in the format of `peft` or as a plain model."""

    def load_adapter(self, directory: Path) -> None:
        """Start from what `save` wrote. Raises: InvalidInput."""

    def state_tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return what a resumed run takes over: the trained weights as they are, and more."""

    def load_state_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take it over. Raises: KeyError, RuntimeError."""


def named_weights(groups: Sequence[WeightGroup]) -> Iterator[tuple[str, nn.Parameter]]:
    for group in groups:
        yield from group.weights
