"""What the loop of a run drives, whatever is trained and however."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow
from worker.training.metrics import MetricsLog, ValidationMetrics
from worker.training.parallel import Group

# Tensors by name, in groups by what they are: each group becomes a file of the checkpoint.
StateTensors = Mapping[str, Mapping[str, Tensor]]


# The base model, what the run started from (another fine-tuned model, perhaps), what it came to.
WhichModel = Literal["base", "start", "tuned"]
# Those kept out of training, and those of earlier data.
WhichRows = Literal["heldout", "earlier"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step came to.

    Attributes:
        loss: of the batch, before the step.
        metrics: what else was measured, as means over the batch.
        grad_norm: before clipping.
        num_tokens: of the batch; of what has no tokens, its records.
    """

    loss: float
    metrics: Mapping[str, float]
    grad_norm: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model makes of the held-out data.

    Attributes:
        scored: its predictions with their targets, ready to be measured.
        worst: the rows that it gets most wrong.
    """

    scored: Scored
    worst: tuple[WorstRow, ...]


class Learner(Protocol):
    """A model in training with its data, its place in them, its optimizer and its metrics.

    Between two steps everything that decides the rest of the run is in `step`,
    `trained_tokens`, `log`, the weights and `state_tensors`.

    Attributes:
        step: optimizer steps taken.
        trained_tokens: of all records seen so far.
        log: what was measured.
    """

    step: int
    trained_tokens: int
    log: MetricsLog

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""

    @property
    def has_heldout(self) -> bool:
        """Whether there is anything to validate on."""

    def description(self) -> dict[str, Any]:
        """Return what the data hold, for the `prepared` message."""

    def arrange_memory(self, asked: bool | Literal["auto"]) -> str:
        """Choose whether activations are kept or computed again; return what and why.

        Raises:
            InvalidInput: they cannot be computed again, and are asked to be.
        """

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return what is trained, by name."""

    def share_steps(self, group: Group) -> bool:
        """Take only a share of each step from now on; False where a step cannot be divided."""

    def take_step(self, before_update: Callable[[], None]) -> StepResult:
        """Learn from the next batch.

        Args:
            before_update: called when the gradients are known; may end the process.

        Raises:
            TrainingFailed: the loss or a gradient is not finite; the weights are unchanged.
        """

    def validate(self, is_interrupted: Callable[[], bool]) -> ValidationMetrics | None:
        """Measure the held-out data; None when interrupted."""

    @property
    def has_earlier(self) -> bool:
        """Whether there are data that the model learnt before, and may have forgotten."""

    def become_served(self) -> None:
        """Compute from now on as the result is served; no step comes after.

        Raises:
            InvalidInput: the base model is not as it was any more.
        """

    def measure(
        self, model: WhichModel, rows: WhichRows, is_interrupted: Callable[[], bool]
    ) -> Measured | None:
        """Measure rows that are not learnt from, one by one; None when interrupted."""

    def save_adapter(self, directory: Path) -> None:
        """Write what is served into an empty directory, with what it was trained with."""

    def state_tensors(self) -> StateTensors:
        """Return what a resumed run needs beside the adapter."""

    def load_weights(self, adapter: Path, tensors: StateTensors) -> None:
        """Take over the weights alone as they were saved."""

    def load_state(self, adapter: Path, tensors: StateTensors) -> None:
        """Take over weights and state as they were saved."""

    def close(self) -> None:
        """Give back what the learner holds of anything that is shared."""
