"""One job in training: its adapter, optimizer, schedule, place in the data, randomness, metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from app.domain.errors import TrainingFailed
from app.domain.job_spec import Hyperparameters, JobSpec
from worker.training.anchor import AnchoredOptimizer
from worker.training.batches import MicroBatch, RecordBatch, derived_seed, epoch_order
from worker.training.methods import Method
from worker.training.metrics import MetricsLog, StepMetrics
from worker.training.optimizer import AdapterOptimizer, Optimizer
from worker.training.parallel import Group
from worker.training.records import EncodedDataset
from worker.training.schedule import learning_rate_factor
from worker.trunk.lora import LoraAdapter, LoraPair, new_adapter
from worker.trunk.trunk import Trunk


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What a session's batch came to.

    Attributes:
        loss: of its method.
        metrics: what else the method measured, as means over the batch.
        num_tokens: of all its records, prompts included.
    """

    loss: float
    metrics: dict[str, float]
    num_tokens: int


class Session:
    """Everything of a run that is not the base model.

    Any number of sessions can share a trunk. What one of them holds and draws, no other one
    touches, so a session trains alike in whatever company.

    Attributes:
        name: of its adapter on the trunk; the job id.
        step: optimizer steps taken.
        trained_tokens: tokens of all records seen so far, prompts included.
        log: what was measured.
        records: those of the dataset that are trained on.
        batch_metrics: of the next batch, what making it has shown.
        generator: source of its dropout.
        reference: name of the adapter on the trunk that is the model which the run started from;
            None: that is the base model.

    Args:
        records: which of the dataset are trained on; None: all of them.
        optimizer: of the weights that are trained, where they are not those of `adapter`.
    """

    def __init__(
        self,
        spec: JobSpec,
        method: Method,
        adapter: LoraAdapter | None,
        dataset: EncodedDataset,
        device: torch.device,
        *,
        records: Sequence[int] | None = None,
        optimizer: Optimizer | None = None,
        reference: str | None = None,
    ) -> None:
        self.name = spec.job_id
        self.method = method
        self.adapter = adapter
        self.dataset = dataset
        self.step = 0
        self.trained_tokens = 0
        self.log = MetricsLog()
        self.batch_metrics: Mapping[str, float] = {}
        self.reference = reference
        self._hyperparameters = spec.hyperparameters
        self._seed = spec.seed
        self.records = range(dataset.num_records) if records is None else records
        self.optimizer = optimizer or _optimizer_of(adapter, spec.hyperparameters)
        if spec.hyperparameters.anchor is not None:
            self.optimizer = AnchoredOptimizer(self.optimizer, spec.hyperparameters.anchor.strength)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(derived_seed(spec.seed, "dropout"))
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.records) / self._hyperparameters.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self._hyperparameters.num_epochs

    @property
    def is_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        chosen = self._hyperparameters
        factor = learning_rate_factor(
            self.step + 1, self.total_steps, chosen.scheduler, chosen.warmup_ratio
        )
        return chosen.learning_rate * factor

    def next_batch(self, token_budget: int) -> list[MicroBatch]:
        """Return the micro-batches of the next step; they depend on nothing but the session."""
        return list(
            RecordBatch(self.dataset, self.next_records(), token_budget, self.method.needs_prompts)
        )

    def next_share(self, token_budget: int, group: Group) -> list[MicroBatch]:
        """Return what one process of several computes of the next step; may be nothing.

        What is random in it is drawn from a seed that the step has for itself in each process, so
        that a checkpoint holds nothing of the others.
        """
        self.generator.manual_seed(group.own_seed(self._seed, "dropout", self.step))
        records = group.share(self.next_records())
        return list(RecordBatch(self.dataset, records, token_budget, self.method.needs_prompts))

    def next_records(self) -> list[int]:
        """Return the records of the next step."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.records), self._seed, epoch)
        size = self._hyperparameters.batch_size
        places = self._order[1][position * size : (position + 1) * size]
        return [self.records[place] for place in places]

    def update(self, found: BatchLoss) -> float:
        """Finish a step whose gradients are accumulated; return the norm they had.

        Raises:
            TrainingFailed: the loss or a gradient is not finite; the weights are unchanged.
        """
        learning_rate = self.learning_rate
        if not math.isfinite(found.loss):
            raise non_finite("loss", self.step + 1, learning_rate)
        grad_norm = self.optimizer.step(learning_rate, self._hyperparameters.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise non_finite("gradient", self.step + 1, learning_rate)
        self.step += 1
        self.trained_tokens += found.num_tokens
        self.log.steps.append(StepMetrics(self.step, found.loss, found.metrics))
        return grad_norm


def non_finite(what: str, step: int, learning_rate: float) -> TrainingFailed:
    """Return the error of a step whose numbers overflowed."""
    return TrainingFailed(
        f"the {what} of step {step} is not finite, at a learning rate of "
        f"{learning_rate:.3g}; a lower learning_rate_multiplier usually helps",
        code="non_finite_loss",
        param="learning_rate_multiplier",
    )


def _optimizer_of(adapter: LoraAdapter | None, chosen: Hyperparameters) -> Optimizer:
    assert adapter is not None
    return AdapterOptimizer(adapter, chosen.weight_decay)


def starting_adapter(trunk: Trunk, spec: JobSpec, start_from: LoraAdapter | None) -> LoraAdapter:
    """Return the weights that a run starts from: fresh ones, or those of another adapter.

    An adapter that is continued keeps its own rank, scaling and targets.
    """
    shape = spec.adapter.plain_lora()
    assert shape is not None
    if start_from is None:
        return new_adapter(
            trunk.model,
            shape,
            derived_seed(spec.seed, "adapter"),
            spec.hyperparameters.freeze_layers,
        )
    weights = {
        path: LoraPair(pair.a.to(trunk.device), pair.b.to(trunk.device))
        for path, pair in start_from.weights.items()
    }
    return LoraAdapter(replace(start_from.spec, dropout=shape.dropout), weights)
