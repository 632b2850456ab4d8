"""From the trainer's messages to rows: every write is one short transaction under the lease."""

import time
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import adapters, counters, events, files, jobs, leases
from app.db.repositories.jobs import Job
from app.domain.ids import checkpoint_model_name
from app.domain.job_state import JobStatus
from app.services.files import store_results
from app.storage import Storage
from worker.fenced_writes import write_until_taken
from worker.lease import Lease

# Quicker steps than this share one event; the file of results has every one of them.
STEP_EVENT_INTERVAL_SECONDS = 0.5
LOG_TAIL_CHARACTERS = 4_000

Message = dict[str, Any]


class Recorder:
    """Writes what happens in one attempt.

    Any method may raise LeaseLost: then it wrote nothing.
    """

    def __init__(
        self, database: Database, storage: Storage, job: Job, lease: Lease, max_attempts: int
    ) -> None:
        self._database = database
        self._storage = storage
        self._job = job
        self._lease = lease
        self._max_attempts = max_attempts
        self._last_step_event = 0.0

    def prepared(self, message: Message) -> None:
        """Tell what the data holds before the first step."""
        told = [
            f"Training file: {message['records']} records, {message['tokens']} tokens, "
            f"{message['trainable_tokens']} of them trained on"
        ]
        warnings = []
        if message["truncated_count"]:
            warnings.append(_count_of_lines(message, "truncated", "longer than the limit: cut"))
        if message["untrainable_count"]:
            warnings.append(
                _count_of_lines(message, "untrainable", "without a token to train on: left out")
            )
        told.append(message["memory_note"])
        if message["start_step"]:
            told.append(f"Resuming from step {message['start_step']}")

        reached = (self._job.progress or {}).get("step", 0)
        repeated = max(0, reached - message["start_step"])

        def write(connection: Connection) -> None:
            self._check(connection)
            for text in told:
                events.add(connection, self._job.id, text)
            for text in warnings:
                events.add(connection, self._job.id, text, level="warn")
            if repeated:
                counters.add(connection, "repeated_steps", repeated)

        self._write(write)

    def step(self, message: Message) -> None:
        """Tell of a step, unless another was told of just before and more are to come."""
        moment = time.monotonic()
        is_last = message["step"] == message["total_steps"]
        if moment - self._last_step_event < STEP_EVENT_INTERVAL_SECONDS and not is_last:
            return
        self._last_step_event = moment
        remaining = (message["total_steps"] - message["step"]) * message["seconds"]
        progress = {
            "step": message["step"],
            "total_steps": message["total_steps"],
            "train_loss": message["train_loss"],
            "tokens_per_second": message["tokens_per_second"],
            "attempt": self._job.attempts,
        }

        def write(connection: Connection) -> None:
            self._check(
                connection,
                progress=progress,
                trained_tokens=message["trained_tokens"],
                estimated_finish=now() + remaining,
            )
            events.add(
                connection,
                self._job.id,
                f"Step {message['step']}/{message['total_steps']}: "
                f"training loss={message['train_loss']:.4f}",
                type="metrics",
                data={key: value for key, value in message.items() if key not in _ADDRESS}
                | {"eta_seconds": remaining},
            )

        self._write(write)

    def validation(self, message: Message) -> None:
        def write(connection: Connection) -> None:
            self._check(connection)
            events.add(
                connection,
                self._job.id,
                f"Validation at step {message['step']}: {_told(message)}",
                type="metrics",
                data={key: value for key, value in message.items() if key not in _ADDRESS},
            )

        self._write(write)

    def checkpoint(self, message: Message) -> None:
        """Move the resume pointer; at the end of an epoch, also name the weights."""

        def write(connection: Connection) -> None:
            leases.write_checkpoint(
                connection,
                self._job.id,
                self._lease.epoch,
                message["prefix"],
                message["step"],
            )
            if message["epoch_end"]:
                self._name_checkpoint(connection, message)

        self._write(write)

    def finished(self, message: Message) -> None:
        """Publish: the adapter's name, the files of results and the status, all in one."""
        contents = {"step_metrics.csv": message["metrics_csv"].encode()}
        contents |= {name: b64decode(content) for name, content in message["results"].items()}
        results = store_results(self._storage, self._job.project_id, contents)
        shown = {
            "epoch": self._lease.epoch,
            "finished_at": now(),
            "estimated_finish": None,
            "trained_tokens": message["trained_tokens"],
            "result_files": [result.id for result in results],
            "report": message["report"],
            "lease_expires_at": None,
        }

        def write(connection: Connection) -> None:
            for note in message["notes"]:
                events.add(connection, self._job.id, note)
            if message["refusal"] is not None:
                self._refuse(connection, message["refusal"], shown)
            else:
                told = "The job has successfully completed"
                jobs.transition(
                    connection, self._job.id, JobStatus.SUCCEEDED, message=told, **shown
                )
                self._name(connection, self._job.output_model, message, is_final=True)
                events.add(connection, self._job.id, f"New model: {self._job.output_model}")
            for result in results:
                files.add(connection, result)

        self._write(write)

    def _refuse(self, connection: Connection, refusal: str, shown: dict[str, Any]) -> None:
        """End a job whose result is not good enough to be published; its report says why."""
        text = f"The model was not published: {refusal}"
        param = "tunesmith.evaluation.deploy_if"
        jobs.transition(
            connection,
            self._job.id,
            JobStatus.FAILED,
            message=text,
            level="error",
            error={"code": "deploy_refused", "message": text, "param": param},
            **shown,
        )

    def failed(self, code: str, text: str, param: str | None) -> None:
        """End the job for a reason that another attempt would meet again."""

        def write(connection: Connection) -> None:
            jobs.transition(
                connection,
                self._job.id,
                JobStatus.FAILED,
                message=text,
                level="error",
                epoch=self._lease.epoch,
                error={"code": code, "message": text, "param": param},
                finished_at=now(),
                estimated_finish=None,
                lease_expires_at=None,
            )

        self._write(write)

    def crashed(self, cause: str, log_tail: str) -> None:
        """Queue the job of a trainer that came to grief, or fail it if that was once too often.

        Args:
            cause: for people: "signal SIGKILL", "exit status 1".
            log_tail: the last lines that it wrote.
        """
        if self._job.attempts >= self._max_attempts:
            tail = log_tail[-LOG_TAIL_CHARACTERS:]
            self.failed(
                "worker_lost",
                f"The trainer was lost {self._job.attempts} times, last by {cause}; the limit is "
                f"{self._max_attempts}. Its last lines:\n{tail}",
                None,
            )
            return

        def write(connection: Connection) -> None:
            self._give_back(connection, f"The trainer was ended by {cause}", level="warn")

        self._write(write)

    def fall_back(self, reason: str) -> None:
        """The checkpoint to resume from is damaged: go back to the one before, or to the start."""

        def write(connection: Connection) -> None:
            leases.fall_back(connection, self._job.id, self._lease.epoch)
            self._give_back(connection, reason, level="warn", attempts=leases.ONE_ATTEMPT_LESS)

        self._write(write)

    def out_of_room(self, reason: str) -> None:
        """Storage is full: give the job back until there is room; this attempt does not count."""

        def write(connection: Connection) -> None:
            self._give_back(connection, reason, level="warn", attempts=leases.ONE_ATTEMPT_LESS)

        self._write(write)

    def released(self, message: Message, reason: str) -> None:
        """The run was told to stop: give the job back; this attempt does not count."""

        def write(connection: Connection) -> None:
            if message["prefix"] is not None:
                leases.write_checkpoint(
                    connection,
                    self._job.id,
                    self._lease.epoch,
                    message["prefix"],
                    message["step"],
                )
            self._give_back(connection, reason, level="info", attempts=leases.ONE_ATTEMPT_LESS)

        self._write(write)

    def _give_back(
        self, connection: Connection, reason: str, *, level: events.Level, **fields: Any
    ) -> None:
        leases.give_back(connection, self._job.id, self._lease.epoch, reason, level=level, **fields)

    def _name_checkpoint(self, connection: Connection, message: Message) -> None:
        if adapters.has_checkpoint(connection, self._job.id, message["step"]):
            return  # This step was reached before, by an attempt that then began anew.
        name = checkpoint_model_name(self._job.output_model, message["step"])
        self._name(connection, name, message, is_final=False)
        adapters.add_checkpoint(
            connection,
            job_id=self._job.id,
            step=message["step"],
            model=name,
            metrics=message["metrics"],
        )
        events.add(connection, self._job.id, f"Checkpoint created at step {message['step']}")

    def _name(self, connection: Connection, name: str, message: Message, *, is_final: bool) -> None:
        adapters.add(
            connection,
            name=name,
            project_id=self._job.project_id,
            job_id=self._job.id,
            base_model=self._job.base_model,
            task=self._job.task,
            storage_prefix=f"{message['prefix']}/adapter",
            manifest_sha256=message["manifest_sha256"],
            step=message["step"],
            is_final=is_final,
        )

    def _check(self, connection: Connection, **fields: Any) -> None:
        leases.write(connection, self._job.id, self._lease.epoch, **fields)

    def _write(self, write: Callable[[Connection], None]) -> None:
        write_until_taken(self._database, self._lease, write)


def _told(message: Message) -> str:
    """Return the loss of a validation, and the metric that the run is judged by."""
    metric = message["judged_by"]
    value = message.get(f"valid_{metric}")
    more = "" if metric == "loss" or value is None else f", {metric}={value:.4f}"
    return f"loss={message['valid_loss']:.4f}{more}"


_ADDRESS = frozenset({"type", "job_id", "epoch"})


def _count_of_lines(message: Message, kind: str, what: str) -> str:
    lines = message[f"{kind}_lines"]
    shown = ", ".join(str(line) for line in lines)
    count = message[f"{kind}_count"]
    more = ", …" if count > len(lines) else ""
    return f"{count} records {what} (lines {shown}{more})"
