"""A fine-tuned model as exports see it, whatever its task."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from app.domain.job_spec import JobSpec

M = TypeVar("M", bound=nn.Module)


def frozen(model: M) -> M:
    """Return a model that computes and does not learn."""
    model.train(False).requires_grad_(False)
    return model


@dataclass(frozen=True, slots=True)
class InputsTold:
    """What an export is compared on.

    Attributes:
        origin: records of the job's files, as far as these are still there; else made up.
        tokens: positions; of models that read no text, inputs.
    """

    origin: Literal["validation_file", "training_file", "fixed"]
    tokens: int


class ExportedModel(Protocol):
    """One fine-tuned model. Every model that it returns is new, in float32 and on the CPU.

    Attributes:
        adapter: directory of what training wrote.
        base: directory of the base model.
        spec: of its job.
        inputs: what it is compared on.
    """

    adapter: Path
    base: Path
    spec: JobSpec
    inputs: InputsTold

    def untuned(self) -> PreTrainedModel:
        """Return the base model, with the head of its task."""

    def tuned(self) -> nn.Module:
        """Return the base model with what was tuned beside it."""

    def load_adapter(self, directory: Path) -> nn.Module:
        """As `tuned`, with an adapter from another directory."""

    def merged(self) -> PreTrainedModel:
        """Return the base model with what was tuned added to its weights."""

    def save_preparation(self, into: Path) -> None:
        """Write what inputs are prepared with: the tokenizer with its template, the processor."""

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield what a model computes for the inputs: [rows, numbers] float32 each."""
