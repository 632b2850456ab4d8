"""The fully resolved description of one training run: no `auto`, no optional left to guess.

The API writes it when a job leaves `validating_files`; the trainer reads it and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

Scheduler = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A stored dataset: where its content is and what it must hash to."""

    file_id: str
    storage_key: str
    sha256: str
    record_count: int


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A stored adapter to continue from: the storage prefix of its directory."""

    model: str
    storage_prefix: str


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Shape of a LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        r: rank of the update.
        alpha: the update is scaled by `alpha / r`.
        dropout: probability of dropping an input of the update while training.
        target_modules: last names of the linear layers that get an update.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How a run trains.

    Attributes:
        num_epochs: passes over the training file.
        batch_size: records per optimizer step.
        learning_rate: peak of the schedule.
        scheduler: shape of the decay after the warm-up, to zero unless constant.
        warmup_ratio: share of all steps over which the rate rises linearly from zero.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: gradients are clipped to this global norm.
        max_length_tokens: longer records are cut at the end.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    max_length_tokens: int
    scheduler: Scheduler = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a trainer needs to know of a job.

    Attributes:
        base_model: id in the operator's catalogue.
        method: name in `app.domain.methods.METHODS`.
        start_from: adapter whose weights the run starts from; None starts from the base model.
        seed: decides initial adapter weights, record order and dropout.
    """

    job_id: str
    base_model: str
    method: str
    training_file: DatasetRef
    validation_file: DatasetRef | None
    start_from: AdapterRef | None
    seed: int
    hyperparameters: Hyperparameters
    adapter: LoraSpec

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "JobSpec":
        return msgspec.json.decode(text, type=cls)
