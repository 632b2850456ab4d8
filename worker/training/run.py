"""One attempt at a job: steps, validations and checkpoints, until it is finished or ended."""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from app.domain.errors import TrainingFailed
from app.domain.registry import resolve
from app.storage.port import Storage, open_storage
from worker.training.bases import WarmBases
from worker.training.checkpoints import (
    Checkpoint,
    locate_start,
    read_checkpoint,
    write_checkpoint,
)
from worker.training.commands import Abandon, CommandQueue, Stop, Train
from worker.training.deadline import Deadline
from worker.training.follow import join
from worker.training.outcome import Outcome
from worker.training.prepare import Prepared, prepare
from worker.training.quantization_notes import quantization_notes
from worker.training.ranks import Ranks
from worker.training.selection import Selection
from worker.training.step_log import StepLog

# By name, since it draws: see there.
_REPORT = "worker.training.reporting:report_on"


class Send(Protocol):
    """Sends one message to the supervisor."""

    def __call__(self, type: str, /, **fields: Any) -> None: ...


def run_job(
    command: Train,
    bases: WarmBases,
    commands: CommandQueue,
    send: Send,
    token_budget: int,
    ranks: Ranks | None = None,
) -> None:
    """Train until the job is finished or a command ends it.

    Args:
        command: what to run.
        bases: where the trunk comes from.
        commands: asked at every step boundary whether to end.
        send: takes the messages of the run.
        token_budget: tokens in one pass through the trunk.
        ranks: those that follow this process in the run, in `follow.follow_job`; None: it is alone.

    Raises:
        TrainingFailed: for a reason that another attempt would meet again, or because the
            checkpoint to resume from is damaged.
        StorageFull: there is no room for a checkpoint.
        InvalidInput: the base model or the adapter to start from cannot be used.
    """
    with ExitStack() as stack:
        deadline = stack.enter_context(Deadline(_path(command.deadline_file)))
        step_log = stack.enter_context(
            StepLog(_path(command.step_log), command.spec.job_id, command.epoch)
        )
        storage = open_storage(command.storage_url)
        start = stack.enter_context(locate_start(storage, command.spec.start_from))
        prepared = prepare(command, bases, storage, token_budget, start)
        stack.callback(prepared.learner.close)
        if ranks is not None:
            join(prepared.learner, ranks)
        send("prepared", **prepared.as_message())
        _Run(command, prepared, storage, deadline, step_log, commands, send, ranks).train()
        if ranks is not None:
            ranks.end()


class _Run:
    """The loop of one learner.

    At every step boundary, in this order: validation if it is due, a checkpoint if one is due,
    then the end if the learner is finished or was told to end, then the next step.
    """

    def __init__(
        self,
        command: Train,
        prepared: Prepared,
        storage: Storage,
        deadline: Deadline,
        step_log: StepLog,
        commands: CommandQueue,
        send: Send,
        ranks: Ranks | None,
    ) -> None:
        self._command = command
        self._learner = prepared.learner
        self._selection = Selection(command.spec, prepared.learner.steps_per_epoch)
        self._storage = storage
        self._deadline = deadline
        self._step_log = step_log
        self._commands = commands
        self._send = send
        self._ranks = ranks
        self._ending: Stop | Abandon | None = None
        resumed = prepared.resumed
        self._checkpoint = resumed.checkpoint if resumed else None
        self._epoch_ends = dict(command.epoch_ends)
        self._checkpointed_at = time.monotonic()
        # A checkpoint of an epoch's end is written after its validation: without the one, the
        # other is due as well.
        is_complete = resumed is not None and not self._is_validation_due()
        self._last_epoch_end = self._learner.step if is_complete else 0

    def train(self) -> None:
        """Take steps until the run is over."""
        while not self._is_over_at_boundary():
            self._take_step()

    def _is_over_at_boundary(self) -> bool:
        learner = self._learner
        if isinstance(self._find_ending(), Abandon):
            return self._end()
        if self._is_validation_due() and not self._validate():
            return self._end()
        if self._is_epoch_end and self._last_epoch_end != learner.step:
            self._write_checkpoint(is_epoch_end=True)
            self._last_epoch_end = learner.step
        elif self._is_checkpoint_due():
            self._write_checkpoint(is_epoch_end=False)
        if learner.step == learner.total_steps or self._selection.has_stopped_improving(
            learner.log, learner.step
        ):
            return self._finish()
        return self._find_ending() is not None and self._end()

    def _take_step(self) -> None:
        self._deadline.enforce()
        if self._ranks is not None:
            self._ranks.tell_step()
        learner = self._learner
        self._step_log.write("begin", learner.step + 1)
        started = time.perf_counter()
        learning_rate = learner.learning_rate
        # Whatever holds the step up, it counts only if the lease still stands.
        found = learner.take_step(self._deadline.enforce)
        self._step_log.write("end", learner.step)
        seconds = time.perf_counter() - started
        self._send(
            "step",
            step=learner.step,
            total_steps=learner.total_steps,
            epoch_of_data=learner.step / learner.steps_per_epoch,
            train_loss=found.loss,
            **{f"train_{name}": value for name, value in found.metrics.items()},
            learning_rate=learning_rate,
            grad_norm=found.grad_norm,
            trained_tokens=learner.trained_tokens,
            tokens_per_second=found.num_tokens / seconds,
            seconds=seconds,
        )

    def _is_validation_due(self) -> bool:
        learner = self._learner
        position = learner.step % learner.steps_per_epoch
        interval = self._command.spec.method_options.get("eval_interval")
        is_boundary = position == 0 or (interval is not None and position % interval == 0)
        is_measured = learner.log.has_validation(learner.step)
        return learner.has_heldout and is_boundary and not is_measured

    def _validate(self) -> bool:
        """Measure the held-out data; False when a command came in between."""
        measured = self._learner.validate(lambda: self._find_ending() is not None)
        if measured is None:
            return False
        if not math.isfinite(measured.valid_loss):
            raise TrainingFailed(
                f"the validation loss after step {measured.step} is not finite",
                code="non_finite_loss",
                param="learning_rate_multiplier",
            )
        self._selection.check(measured)
        self._learner.log.validations.append(measured)
        self._send("validation", judged_by=self._selection.metric, **measured.as_fields())
        return True

    @property
    def _is_epoch_end(self) -> bool:
        return self._learner.step > 0 and self._learner.step % self._learner.steps_per_epoch == 0

    def _is_checkpoint_due(self) -> bool:
        elapsed_seconds = time.monotonic() - self._checkpointed_at
        is_new = self._learner.step > (self._checkpoint.step if self._checkpoint else 0)
        return is_new and elapsed_seconds >= self._command.checkpoint_interval_seconds

    def _write_checkpoint(self, *, is_epoch_end: bool) -> None:
        learner = self._learner
        self._checkpoint = self._save()
        self._checkpointed_at = time.monotonic()
        self._send(
            "checkpoint",
            step=learner.step,
            prefix=self._checkpoint.prefix,
            manifest_sha256=self._checkpoint.manifest_sha256,
            epoch_end=is_epoch_end,
            trained_tokens=learner.trained_tokens,
            metrics=learner.log.at_checkpoint(learner.step),
        )

    def _save(self) -> Checkpoint:
        step = self._learner.step
        prefix = f"{self._command.checkpoint_prefix}/step-{step}"
        checkpoint = write_checkpoint(
            self._storage, prefix, self._learner, self._command.spec, self._deadline.enforce
        )
        if self._is_epoch_end:
            # One that an earlier attempt wrote of this step has a name already, and equal bits.
            self._epoch_ends.setdefault(step, prefix)
        self._step_log.write("checkpoint", step)
        return checkpoint

    def _finish(self) -> bool:
        """Publish the result with its report; or end, if a command came in between."""
        chosen = self._chosen_checkpoint()
        outcome: Outcome | None = Outcome()
        if self._learner.has_heldout:
            self._learner.become_served()
            outcome = resolve(_REPORT)(
                self._command, self._learner, chosen.step, lambda: self._find_ending() is not None
            )
        if outcome is None:
            return self._end()
        self._send(
            "finished",
            step=chosen.step,
            prefix=chosen.prefix,
            manifest_sha256=chosen.manifest_sha256,
            trained_tokens=self._learner.trained_tokens,
            metrics_csv=self._learner.log.to_csv(),
            notes=[
                *self._selection.notes(self._learner.step, self._learner.total_steps, chosen.step),
                *quantization_notes(self._command.spec, self._learner.log, chosen.step, outcome),
            ],
            **outcome.as_message(),
        )
        return True

    def _chosen_checkpoint(self) -> Checkpoint:
        """Return the checkpoint to publish, whose weights are then those of the learner."""
        last = self._checkpoint
        assert last is not None
        step = self._selection.best_of(self._learner.log, self._epoch_ends)
        if step is None or step == last.step:
            return last
        saved = read_checkpoint(self._storage, self._epoch_ends[step], self._command.spec)
        self._learner.load_weights(saved.adapter, saved.tensors)
        return saved.checkpoint

    def _find_ending(self) -> Stop | Abandon | None:
        if self._ending is None:
            self._ending = self._commands.find_ending()
        return self._ending

    def _end(self) -> bool:
        """Answer the command that ends the run; True, for the run is over."""
        step = self._learner.step
        is_kept = isinstance(self._ending, Stop)
        if is_kept and step > 0 and (self._checkpoint is None or self._checkpoint.step != step):
            self._checkpoint = self._save()
        checkpoint = self._checkpoint if is_kept else None
        self._send(
            "stopped",
            step=step,
            prefix=checkpoint and checkpoint.prefix,
            manifest_sha256=checkpoint and checkpoint.manifest_sha256,
        )
        return True


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
