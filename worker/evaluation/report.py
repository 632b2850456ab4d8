"""The report that every job ends with: what was measured, on what, base against tuned."""

from typing import Literal

import msgspec

from worker.evaluation.comparison import Comparison
from worker.evaluation.worst_rows import WorstRow


class HeldOut(msgspec.Struct, frozen=True):
    """The rows that were kept from training.

    Attributes:
        source: a file of their own, or a share split off the training file.
        share: of the training file; None for a file of its own.
        seed: of the split; None for a file of its own.
    """

    source: Literal["validation_file", "training_file"]
    file_id: str
    rows: int
    share: float | None = None
    seed: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of one job, as its result file holds it.

    Attributes:
        version: of this shape; a reader may refuse what it does not know.
        tuned_model: None where the model was not published.
        training_rows: that the model learnt from.
        bootstrap_seed: of the intervals.
        best_step: the checkpoint that was evaluated.
        best_metric: by which it was chosen; None: it is the last one.
        refusal: why `deploy_if` kept the model from being published; None if it did not.
        worst_rows: of the held-out rows, under the tuned model.
        forgetting: the model that the job started from (as base) against the tuned one, on data
            that the former had learnt; None where none were given.
    """

    version: Literal[1] = 1
    job_id: str
    base_model: str
    tuned_model: str | None
    task: str
    method: str
    training_rows: int
    held_out: HeldOut
    bootstrap_seed: int
    best_step: int | None
    best_metric: str | None
    refusal: str | None
    comparison: Comparison
    worst_rows: tuple[WorstRow, ...]
    forgetting: Comparison | None = None

    def to_json(self) -> bytes:
        """Return the report as JSON, keys in the order of the fields, NaN nowhere."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Report":
        return msgspec.json.decode(text, type=cls)
