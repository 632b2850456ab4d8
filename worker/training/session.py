"""One job in training: its adapter, optimizer, schedule, place in the data, randomness, metrics."""

import math
from dataclasses import dataclass, replace

import torch

from app.domain.errors import TrainingFailed
from app.domain.job_spec import JobSpec
from worker.training.batches import MicroBatch, derived_seed, epoch_order, micro_batches
from worker.training.methods import Method
from worker.training.metrics import MetricsLog, StepMetrics
from worker.training.optimizer import AdapterOptimizer
from worker.training.records import EncodedDataset
from worker.training.schedule import learning_rate_factor
from worker.trunk.lora import LoraAdapter, LoraPair, new_adapter
from worker.trunk.trunk import Trunk


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What a session's batch came to.

    Attributes:
        loss: mean negative log-likelihood of the learnt tokens, in nats.
        accuracy: share of them that were the most likely token.
        num_tokens: of all its records, prompts included.
    """

    loss: float
    accuracy: float
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
        generator: source of its dropout.
    """

    def __init__(
        self,
        spec: JobSpec,
        method: Method,
        adapter: LoraAdapter,
        dataset: EncodedDataset,
        device: torch.device,
    ) -> None:
        self.name = spec.job_id
        self.method = method
        self.adapter = adapter
        self.dataset = dataset
        self.step = 0
        self.trained_tokens = 0
        self.log = MetricsLog()
        self._hyperparameters = spec.hyperparameters
        self._seed = spec.seed
        self.optimizer = AdapterOptimizer(adapter, spec.hyperparameters.weight_decay)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(derived_seed(spec.seed, "dropout"))
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.dataset.num_records / self._hyperparameters.batch_size)

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
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.dataset.num_records, self._seed, epoch)
        size = self._hyperparameters.batch_size
        records = self._order[1][position * size : (position + 1) * size]
        return list(micro_batches(self.dataset, records, token_budget))

    def update(self, found: BatchLoss) -> float:
        """Finish a step whose gradients are accumulated; return the norm they had.

        Raises:
            TrainingFailed: the loss or a gradient is not finite; the weights are unchanged.
        """
        learning_rate = self.learning_rate
        if not math.isfinite(found.loss):
            raise self._non_finite("loss", learning_rate)
        grad_norm = self.optimizer.step(learning_rate, self._hyperparameters.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise self._non_finite("gradient", learning_rate)
        self.step += 1
        self.trained_tokens += found.num_tokens
        self.log.steps.append(StepMetrics(self.step, found.loss, found.accuracy))
        return grad_norm

    def _non_finite(self, what: str, learning_rate: float) -> TrainingFailed:
        return TrainingFailed(
            f"the {what} of step {self.step + 1} is not finite, at a learning rate of "
            f"{learning_rate:.3g}; a lower learning_rate_multiplier usually helps",
            code="non_finite_loss",
            param="learning_rate_multiplier",
        )


def starting_adapter(trunk: Trunk, spec: JobSpec, start_from: LoraAdapter | None) -> LoraAdapter:
    """Return the weights that a run starts from: fresh ones, or those of another adapter.

    An adapter that is continued keeps its own rank, scaling and targets.
    """
    if start_from is None:
        return new_adapter(trunk.model, spec.adapter, derived_seed(spec.seed, "adapter"))
    weights = {
        path: LoraPair(pair.a.to(trunk.device), pair.b.to(trunk.device))
        for path, pair in start_from.weights.items()
    }
    return LoraAdapter(replace(start_from.spec, dropout=spec.adapter.dropout), weights)
