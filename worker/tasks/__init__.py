"""Tasks beside text generation: one file each, named by dotted path in `app.domain.tasks.TASKS`.

A task is the same object in training and in serving: it has the model with its head, turns records
and inputs into examples, and knows the loss, the predictions, their measure and their wire form.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.datasets import Record
from app.domain.job_spec import JobSpec
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow
from worker.trunk.device import DeviceProfile

# What a training file decides of the model, such as its labels; kept beside the adapter.
Outline = Mapping[str, Any]
# Its field for the pixels a side of the images that the model sees, where a job has chosen them.
IMAGE_SIZE = "image_size"
Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """One record or one input, ready to be collated.

    Attributes:
        features: what the model takes.
        target: what is to be predicted, in the task's own form; None for an input.
        cost: what it takes of a pass: tokens, or what compares to them.
        excerpt: the start of the input, for people.
        is_truncated: the input was longer than allowed and was cut.
        line: of the record in its file; 0 for an input.
    """

    features: Mapping[str, Any]
    target: Any
    cost: int
    excerpt: str = ""
    is_truncated: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What changes a loss, as far as the task knows of it.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        class_weights: [classes] float32, weights of classes in the loss; None: all alike.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """The loss of a batch, example by example.

    Attributes:
        sums: [examples] float32, carry the gradient.
        weights: [examples] float32; the loss of any set of examples is the sum of their `sums`
            over that of their `weights`.
    """

    sums: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """Held-out examples with what a model predicts for them.

    Attributes:
        losses: one for each example.
    """

    examples: Sequence[Example]
    predictions: Sequence[Any]
    losses: Sequence[float]


class Task(Protocol):
    """One kind of problem on one base model.

    Args:
        directory: of the base model.
        outline: as `survey` returned it.
        spec: of the job, while training; None in serving.

    Attributes:
        model: the base model with the task's head, in float32 or the profile's format.
        head_modules: names of the modules that start untrained; they are trained and saved whole.
        peft_task_type: name in `peft.TaskType`; None where `peft` has no word for the task.
        is_batch_whole: the loss compares examples of a batch, which must not be split up.
    """

    model: PreTrainedModel
    head_modules: Sequence[str]
    peft_task_type: str | None
    is_batch_whole: bool

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None: ...

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        """Return what the training file decides of the model.

        Raises:
            InvalidInput: nothing can be learnt from these records; the message says why.
        """

    def encode(self, record: Record, max_length_tokens: int) -> Example | Sequence[Example]:
        """Return a record as an example, or as several if it is learnt in pieces.

        None: there is nothing in it that could be learnt.

        Raises:
            InvalidInput: it does not fit the outline.
        """

    def encode_input(self, value: Any) -> Example:
        """Return what a request asks for as an example. Raises: InvalidInput, naming the field."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return the tensors of a batch on the CPU; with targets, if the examples have them."""

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        """Return the loss of a batch that is on the model's device."""

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return one prediction for each example, in the task's own form and on the CPU."""

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        """Return a prediction in the shape of the Hugging Face pipeline of the task.

        Raises:
            InvalidInput: a parameter is unknown or out of bounds; `param` names it.
        """

    def score(self, judged: Judged) -> Scored:
        """Return the predictions with their targets, ready to be measured."""

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        """Return the examples that the model gets most wrong."""
