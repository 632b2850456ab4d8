"""One attempt at a job: steps, validations and checkpoints, until it is finished or ended."""

import math
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from app.domain.errors import TrainingFailed
from app.storage.port import Storage, open_storage
from worker.training.bases import WarmBases
from worker.training.checkpoints import Checkpoint, write_checkpoint
from worker.training.commands import Abandon, CommandQueue, Stop, Train
from worker.training.deadline import Deadline
from worker.training.manifest import write_origin
from worker.training.prepare import Prepared, prepare
from worker.training.step import trunk_step
from worker.training.step_log import StepLog
from worker.training.validation import validate
from worker.trunk.device import DeviceProfile


class Send(Protocol):
    """Sends one message to the supervisor."""

    def __call__(self, type: str, /, **fields: Any) -> None: ...


def run_job(
    command: Train, bases: WarmBases, commands: CommandQueue, send: Send, token_budget: int
) -> None:
    """Train until the job is finished or a command ends it.

    Args:
        command: what to run.
        bases: where the trunk comes from.
        commands: asked at every step boundary whether to end.
        send: takes the messages of the run.
        token_budget: tokens in one pass through the trunk.

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
        prepared = prepare(command, bases, storage)
        session, trunk = prepared.session, prepared.trunk
        stack.callback(trunk.detach, session.name)
        trunk.attach(session.name, session.adapter, session.generator)
        send("prepared", **prepared.as_message())
        _Run(
            command,
            prepared,
            storage,
            deadline,
            step_log,
            commands,
            send,
            token_budget,
            bases.profile,
        ).train()


class _Run:
    """The loop of one session.

    At every step boundary, in this order: validation if it is due, a checkpoint if one is due,
    then the end if the session is finished or was told to end, then the next step.
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
        token_budget: int,
        profile: DeviceProfile,
    ) -> None:
        self._command = command
        self._trunk, self._session = prepared.trunk, prepared.session
        self._validation = prepared.validation
        self._storage = storage
        self._deadline = deadline
        self._step_log = step_log
        self._commands = commands
        self._send = send
        self._token_budget = token_budget
        self._profile = profile
        self._ending: Stop | Abandon | None = None
        self._checkpoint = prepared.resumed
        self._checkpointed_at = time.monotonic()
        # A checkpoint of an epoch's end is written after its validation: without the one, the
        # other is due as well.
        is_complete = prepared.resumed is not None and not self._is_validation_due()
        self._last_epoch_end = self._session.step if is_complete else 0

    def train(self) -> None:
        """Take steps until the run is over."""
        while not self._is_over_at_boundary():
            self._take_step()

    def _is_over_at_boundary(self) -> bool:
        session = self._session
        if isinstance(self._find_ending(), Abandon):
            return self._end()
        if self._is_validation_due() and not self._validate():
            return self._end()
        if session.is_epoch_end and self._last_epoch_end != session.step:
            self._write_checkpoint(is_epoch_end=True)
            self._last_epoch_end = session.step
        elif self._is_checkpoint_due():
            self._write_checkpoint(is_epoch_end=False)
        if session.step == session.total_steps:
            return self._finish()
        return self._find_ending() is not None and self._end()

    def _take_step(self) -> None:
        self._deadline.enforce()
        session = self._session
        self._step_log.write("begin", session.step + 1)
        started = time.perf_counter()
        learning_rate = session.learning_rate
        tokens_before = session.trained_tokens
        (found,) = trunk_step(self._trunk, [session], self._token_budget)
        # Whatever held the step up, it counts only if the lease still stands.
        self._deadline.enforce()
        grad_norm = session.update(found)
        self._step_log.write("end", session.step)
        seconds = time.perf_counter() - started
        self._send(
            "step",
            step=session.step,
            total_steps=session.total_steps,
            epoch_of_data=session.step / session.steps_per_epoch,
            train_loss=found.loss,
            train_mean_token_accuracy=found.accuracy,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            trained_tokens=session.trained_tokens,
            tokens_per_second=(session.trained_tokens - tokens_before) / seconds,
            seconds=seconds,
        )

    def _is_validation_due(self) -> bool:
        session = self._session
        is_boundary = session.step == 0 or session.is_epoch_end
        has_file = self._validation is not None
        return has_file and is_boundary and not session.log.has_validation(session.step)

    def _validate(self) -> bool:
        """Measure the validation file; False when a command came in between."""
        assert self._validation is not None
        measured = validate(
            self._trunk,
            self._session,
            self._validation,
            self._token_budget,
            lambda: self._find_ending() is not None,
        )
        if measured is None:
            return False
        if not math.isfinite(measured.valid_loss):
            raise TrainingFailed(
                f"the validation loss after step {measured.step} is not finite",
                code="non_finite_loss",
                param="learning_rate_multiplier",
            )
        self._session.log.validations.append(measured)
        self._send(
            "validation",
            step=measured.step,
            valid_loss=measured.valid_loss,
            valid_mean_token_accuracy=measured.valid_mean_token_accuracy,
        )
        return True

    def _is_checkpoint_due(self) -> bool:
        elapsed_seconds = time.monotonic() - self._checkpointed_at
        is_new = self._session.step > (self._checkpoint.step if self._checkpoint else 0)
        return is_new and elapsed_seconds >= self._command.checkpoint_interval_seconds

    def _write_checkpoint(self, *, is_epoch_end: bool) -> None:
        session = self._session
        self._checkpoint = self._save()
        self._checkpointed_at = time.monotonic()
        self._send(
            "checkpoint",
            step=session.step,
            prefix=self._checkpoint.prefix,
            manifest_sha256=self._checkpoint.manifest_sha256,
            epoch_end=is_epoch_end,
            trained_tokens=session.trained_tokens,
            metrics=session.log.at_checkpoint(session.step),
        )

    def _save(self) -> Checkpoint:
        session, command = self._session, self._command
        checkpoint = write_checkpoint(
            self._storage,
            f"{command.checkpoint_prefix}/step-{session.step}",
            session,
            command.spec,
            command.base.name_or_path,
            write_origin=partial(
                write_origin,
                spec=command.spec,
                base=command.base,
                trunk=self._trunk,
                profile=self._profile,
                step=session.step,
            ),
            before_publish=self._deadline.enforce,
        )
        self._step_log.write("checkpoint", session.step)
        return checkpoint

    def _finish(self) -> bool:
        checkpoint = self._checkpoint
        assert checkpoint is not None
        self._send(
            "finished",
            step=checkpoint.step,
            prefix=checkpoint.prefix,
            manifest_sha256=checkpoint.manifest_sha256,
            trained_tokens=self._session.trained_tokens,
            metrics_csv=self._session.log.to_csv(),
        )
        return True

    def _find_ending(self) -> Stop | Abandon | None:
        if self._ending is None:
            self._ending = self._commands.find_ending()
        return self._ending

    def _end(self) -> bool:
        """Answer the command that ends the run; True, for the run is over."""
        step = self._session.step
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
