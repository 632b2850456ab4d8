"""A task in training: a whole model with its head, in padded batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from app.domain.job_spec import JobSpec
from app.domain.training_options import learns_a_cache
from worker.evaluation.measure import values
from worker.tasks import Batch, Example, LossOptions, Task
from worker.training.activations import activation_bytes, choose
from worker.training.anchor import WeightAnchor, fisher_importance
from worker.training.batches import epoch_order
from worker.training.embedding_changes import EmbeddingChanges
from worker.training.examples import EncodedExamples
from worker.training.learner import (
    Measured,
    StateTensors,
    StepResult,
    WhichModel,
    WhichRows,
)
from worker.training.memory import Memory
from worker.training.metrics import MetricsLog, StepMetrics, ValidationMetrics
from worker.training.parallel import SOLO, Group
from worker.training.parameter_optimizer import ParameterOptimizer
from worker.training.recomputation import RecomputedLayers, has_repeated_layers
from worker.training.schedule import learning_rate_factor
from worker.training.session import non_finite
from worker.training.task_judging import TaskJudge
from worker.training.task_passes import TaskPasses, set_training
from worker.trunk.device_memory import free_bytes
from worker.tuning import Tuning, named_weights


class TaskLearner:
    """See `learner.Learner`.

    Everything random in a step is drawn from a seed that the step has for itself, so that a step
    number is all that a resumed run needs.

    Args:
        base_model_name: written into the adapter, so that it loads anywhere.
        heldout: what to validate on; empty: nothing.
        memory: earlier data; None: there are none.
        budget: what the examples of one pass may cost together.
        write_origin: adds to the directory of an adapter what it was trained with.
        become_served: see `learner.Learner`; None: nothing changes.
    """

    def __init__(
        self,
        spec: JobSpec,
        task: Task,
        tuning: Tuning,
        base_model_name: str,
        training: EncodedExamples,
        heldout: Sequence[Example],
        memory: Memory | None,
        budget: int,
        options: LossOptions,
        write_origin: Callable[[Path, int], None],
        become_served: Callable[[], None] | None = None,
    ) -> None:
        self.step = 0
        self.trained_tokens = 0
        self.log = MetricsLog()
        self._spec = spec
        self._chosen = spec.hyperparameters
        self._task = task
        self._tuning = tuning
        self._base_model_name = base_model_name
        self._training = training
        self._learnt = [*training.examples, *(memory.replayed if memory else ())]
        self._heldout = heldout
        self._memory = memory
        self._passes = TaskPasses(task, tuning.model, budget, spec.hyperparameters.batch_size)
        start = memory.start if memory else None
        self._judge = TaskJudge(task, tuning, self._passes, start)
        self._options = options
        self._write_origin = write_origin
        self._become_served = become_served
        self._trained = list(named_weights(tuning.groups()))
        self._optimizer = ParameterOptimizer(tuning, self._chosen.weight_decay)
        self._changes: EmbeddingChanges | None = None
        if self._chosen.adversarial is not None or self._chosen.neftune_noise_alpha > 0:
            self._changes = EmbeddingChanges(
                task.model, self._chosen.neftune_noise_alpha, self._chosen.adversarial
            )
        self._anchor = self._make_anchor()
        self._order: tuple[int, list[int]] = (-1, [])
        self._group: Group = SOLO

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self._learnt) / self._chosen.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self._chosen.num_epochs

    @property
    def learning_rate(self) -> float:
        chosen = self._chosen
        factor = learning_rate_factor(
            self.step + 1, self.total_steps, chosen.scheduler, chosen.warmup_ratio
        )
        return chosen.learning_rate * factor

    @property
    def has_heldout(self) -> bool:
        return bool(self._heldout)

    def description(self) -> dict[str, Any]:
        return self._training.description()

    def arrange_memory(self, asked: bool | Literal["auto"]) -> str:
        model = self._tuning.model
        longest = max(self._learnt, key=lambda example: example.cost)
        batch = self._passes.collate([longest])
        set_training(model, True)
        kept = activation_bytes(
            model.parameters(), lambda: self._task.loss(model, batch, self._options).sums.sum()
        )
        together = self._chosen.batch_size
        if not self._task.is_batch_whole:
            together = max(1, min(together, self._passes.budget // longest.cost))
        is_cached = learns_a_cache(self._spec.task, self._spec.adapter)
        choice = choose(
            asked,
            kept * together,
            free_bytes(next(model.parameters()).device),
            is_possible=has_repeated_layers(model) and not is_cached,
        )
        if choice.is_recomputed:
            RecomputedLayers(model)
        return choice.reason

    def weights(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self._trained

    def share_steps(self, group: Group) -> bool:
        if self._task.is_batch_whole:
            return False
        self._group = group
        return True

    def take_step(self, before_update: Callable[[], None]) -> StepResult:
        examples = self._next_batch()
        learning_rate = self.learning_rate
        torch.manual_seed(self._group.own_seed(self._spec.seed, "step", self.step))
        set_training(self._tuning.model, True)
        loss = self._accumulate_gradients(examples)
        before_update()
        if not math.isfinite(loss):
            raise non_finite("loss", self.step + 1, learning_rate)
        grad_norm = self._optimizer.step(learning_rate, self._chosen.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise non_finite("gradient", self.step + 1, learning_rate)
        cost = sum(example.cost for example in examples)
        self.step += 1
        self.trained_tokens += cost
        self.log.steps.append(StepMetrics(self.step, loss))
        return StepResult(loss, {}, grad_norm, cost)

    def validate(self, is_interrupted: Callable[[], bool]) -> ValidationMetrics | None:
        judged = self._judge.judge(self._heldout, is_interrupted)
        if judged is None:
            return None
        found = values(self._task.score(judged))
        mean_loss = sum(judged.losses) / len(judged.losses)
        metrics = {name: value for name, value in found.items() if name != "loss"}
        return ValidationMetrics(self.step, mean_loss, metrics)

    @property
    def has_earlier(self) -> bool:
        return self._memory is not None and bool(self._memory.judged)

    def become_served(self) -> None:
        if self._become_served is not None:
            self._become_served()

    def measure(
        self, model: WhichModel, rows: WhichRows, is_interrupted: Callable[[], bool]
    ) -> Measured | None:
        examples = self._heldout
        if rows == "earlier":
            assert self._memory is not None
            examples = self._memory.judged
        judged = self._judge.judge(examples, is_interrupted, model)
        if judged is None:
            return None
        return Measured(self._task.score(judged), self._task.worst(judged))

    def save_adapter(self, directory: Path) -> None:
        self._tuning.save(directory, self._base_model_name)
        self._write_origin(directory, self.step)

    def state_tensors(self) -> StateTensors:
        return {"optimizer": self._optimizer.state_tensors(), **self._tuning.state_tensors()}

    def load_weights(self, adapter: Path, tensors: StateTensors) -> None:
        self._tuning.load_state_tensors(tensors)

    def load_state(self, adapter: Path, tensors: StateTensors) -> None:
        self.load_weights(adapter, tensors)
        self._optimizer.load_state_tensors(tensors["optimizer"])

    def close(self) -> None:
        return

    def _next_batch(self) -> list[Example]:
        examples = self._learnt
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(len(examples), self._spec.seed, epoch)
        size = self._chosen.batch_size
        return [examples[i] for i in self._order[1][position * size : (position + 1) * size]]

    def _accumulate_gradients(self, examples: Sequence[Example]) -> float:
        """Return the loss of a batch, whose gradients are then those of the batch as a whole."""
        sums: list[Tensor] = []
        weights = 0.0
        for part in self._passes.cut(self._group.share(examples)):
            total, weight = self._accumulate_pass(self._passes.collate(part))
            sums.append(total)
            weights += weight
        loss = float(torch.stack(sums).sum()) if sums else 0.0
        found = self._group.sum_metrics({"loss": loss, "weights": weights})
        self._group.sum_gradients(self._trained)
        # What they are divided by is known only now.
        for _, parameter in self._trained:
            if parameter.grad is not None:
                parameter.grad.div_(found["weights"])
        if self._anchor is not None:
            self._anchor.add_gradients()
        extra = self._tuning.before_update(self.step + 1)
        if extra is not None:
            extra.backward()  # type: ignore[no-untyped-call]
        return found["loss"] / found["weights"]

    def _accumulate_pass(self, batch: Batch) -> tuple[Tensor, float]:
        """Return the sum of the losses of a pass, [] without gradient, and that of the weights."""
        weight = 0.0

        def compute_loss() -> Tensor:
            nonlocal weight
            found = self._task.loss(self._tuning.model, batch, self._options)
            weight = float(found.weights.sum())
            return found.sums.sum()

        if self._changes is not None:
            return self._changes.accumulate(compute_loss), weight
        total = compute_loss()
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach(), weight

    def _make_anchor(self) -> WeightAnchor | None:
        """Return what holds the weights at their start, where they are now."""
        chosen = self._chosen.anchor
        if chosen is None:
            return None
        importance: Mapping[str, Tensor] | None = None
        if chosen.type == "ewc":
            assert self._memory is not None
            set_training(self._tuning.model, False)
            earlier = self._memory.replayed or self._memory.judged
            importance = fisher_importance(self._trained, earlier, self._loss_of)
        return WeightAnchor(self._trained, chosen.strength, importance)

    def _loss_of(self, example: Example) -> Tensor:
        found = self._task.loss(self._tuning.model, self._passes.collate([example]), LossOptions())
        return found.sums.sum() / found.weights.sum().clamp(min=1e-12)
