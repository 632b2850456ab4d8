"""Whatever dies in the middle of a job or an answer, the job goes on and succeeds."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIConnectionError, APIError, InternalServerError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from app.db.repositories import jobs
from tests.support.factories import BASE_MODEL
from tests.support.jobs import (
    create_job,
    numbers_of,
    progress_of,
    story_of,
    wait_until_ended,
    wait_until_step,
)
from tests.support.polling import eventually
from tests.support.service import REPOSITORY, Service, environment_of, processes_of

# The job that is disturbed: three epochs, so that there is a checkpoint before the crash.
EPOCHS = 3
STEPS_PER_EPOCH = 2
STEPS = EPOCHS * STEPS_PER_EPOCH

# What a crash means for the database is tried on both, the rest on either.
on_sqlite = pytest.mark.parametrize("stack", ["sqlite+filesystem"], indirect=True)
on_postgres = pytest.mark.parametrize("stack", ["postgres+valkey"], indirect=True)

# Of streams, and of answers in one piece, that are asked for when the engine is killed.
STREAMS = 4
HANGS_SECONDS = 90

HELLO: Any = [{"role": "user", "content": "hello"}]


def disturbed_job(user: OpenAI) -> FineTuningJob:
    return create_job(
        user,
        records=2 * STEPS_PER_EPOCH,
        hyperparameters={"n_epochs": EPOCHS, "batch_size": 2},
    )


def long_job(user: OpenAI) -> FineTuningJob:
    """A job that a heartbeat reaches before it is done, however quick the machine."""
    return create_job(user, records=4, hyperparameters={"n_epochs": 12, "batch_size": 2})


def short_job(user: OpenAI) -> FineTuningJob:
    return create_job(user, records=2, hyperparameters={"n_epochs": 1, "batch_size": 2})


def told(user: OpenAI, job: FineTuningJob) -> str:
    return "\n".join(event.message for event in story_of(user, job))


def steps_told(user: OpenAI, job: FineTuningJob) -> list[int]:
    numbers = numbers_of(story_of(user, job))
    return [one["step"] for one in numbers if "train_loss" in one]


def assert_it_resumed(user: OpenAI, job: FineTuningJob) -> None:
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert "Resuming from step" in told(user, job)
    assert progress_of(ended)["attempt"] == 2
    # Steps that were taken before the last checkpoint are not taken again.
    assert steps_told(user, job).count(1) == 1
    assert steps_told(user, job)[-1] == STEPS
    checkpoints = [one.step_number for one in user.fine_tuning.jobs.checkpoints.list(job.id)]
    assert checkpoints == [6, 4, 2]
    answer = user.chat.completions.create(
        model=ended.fine_tuned_model or "", messages=HELLO, max_completion_tokens=2
    )
    assert answer.choices


@on_sqlite
def test_a_killed_trainer_costs_no_more_than_the_last_steps(stack: Service, user: OpenAI) -> None:
    job = disturbed_job(user)
    wait_until_step(user, job, STEPS_PER_EPOCH + 1)
    stack.kill("trainer")
    assert_it_resumed(user, job)
    assert "signal SIGKILL" in told(user, job)


# On SQLite, tests/chaos kills workers.
@on_postgres
def test_a_killed_worker_is_replaced_and_its_job_goes_on(stack: Service, user: OpenAI) -> None:
    job = disturbed_job(user)
    wait_until_step(user, job, STEPS_PER_EPOCH + 1)
    trainer = psutil.Process(stack.pid("trainer"))
    stack.kill("worker")
    # A trainer whose supervisor is gone takes no step more: another one may hold the job.
    eventually(lambda: not trainer.is_running(), what="the trainer followed", within_seconds=15)
    assert_it_resumed(user, job)
    assert "fell silent" in told(user, job)


@on_postgres
def test_a_worker_that_is_told_to_stop_gives_its_job_back(stack: Service, user: OpenAI) -> None:
    job = disturbed_job(user)
    wait_until_step(user, job, STEPS_PER_EPOCH + 1)
    worker = psutil.Process(stack.pid("worker"))
    worker.terminate()
    eventually(lambda: not worker.is_running(), what="the worker has ended", within_seconds=30)
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert "The worker shuts down: job queued again at step" in told(user, job)
    # It took a checkpoint before it went: no step is taken twice, and no attempt is counted.
    steps = steps_told(user, job)
    assert len(steps) == len(set(steps))
    assert progress_of(ended)["attempt"] == 1


@on_sqlite
def test_a_killed_engine_ends_its_answers_and_no_job(stack: Service, user: OpenAI) -> None:
    job = disturbed_job(user)
    wait_until_step(user, job, 1)
    begun = threading.Barrier(STREAMS + 1)

    def listen() -> bool:
        """Say whether a stream that had begun ended with an error that tells of the engine."""
        stream = patient.chat.completions.create(
            model=BASE_MODEL, messages=HELLO, stream=True, max_completion_tokens=900, temperature=2
        )
        assert next(stream).choices
        begun.wait(HANGS_SECONDS)
        with pytest.raises(APIError, match="engine"):
            list(stream)
        return True

    def wait_for_it() -> bool:
        with pytest.raises(InternalServerError, match="engine"):
            patient.chat.completions.create(
                model=BASE_MODEL, messages=HELLO, max_completion_tokens=900, temperature=2
            )
        return True

    patient = user.with_options(timeout=HANGS_SECONDS)
    with ThreadPoolExecutor(2 * STREAMS) as pool:
        asked = [pool.submit(how) for how in (listen, wait_for_it) for _ in range(STREAMS)]
        begun.wait(HANGS_SECONDS)
        stack.kill("engine")
        assert all(one.result(HANGS_SECONDS) for one in asked)
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert progress_of(ended)["attempt"] == 1

    def answers() -> bool:
        with suppress(InternalServerError):
            return bool(
                user.chat.completions.create(
                    model=ended.fine_tuned_model or "", messages=HELLO, max_completion_tokens=2
                )
            )
        return False

    eventually(answers, what="the engine answers again", within_seconds=90)


@on_postgres
def test_a_killed_api_comes_back_and_loses_nothing(stack: Service, user: OpenAI) -> None:
    job = short_job(user)
    stack.kill("api")

    def is_back() -> bool:
        with suppress(APIConnectionError):
            return user.fine_tuning.jobs.retrieve(job.id).id == job.id
        return False

    eventually(is_back, what="the API answers again", within_seconds=60)
    assert wait_until_ended(user, job).status == "succeeded"


@on_postgres
def test_a_cancelled_job_stops_and_leaves_the_trainer_to_the_next(
    stack: Service, user: OpenAI
) -> None:
    trainer = stack.pid("trainer")
    job = create_job(user, records=2, hyperparameters={"n_epochs": 50, "batch_size": 2})
    wait_until_step(user, job, 1)
    assert user.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    ended = wait_until_ended(user, short_job(user))
    assert ended.status == "succeeded", ended.error
    assert stack.pid("trainer") == trainer
    cancelled = user.fine_tuning.jobs.retrieve(job.id)
    assert cancelled.status == "cancelled"
    assert (cancelled.fine_tuned_model, cancelled.result_files) == (None, [])
    assert story_of(user, job)[-1].message == "Fine-tuning job cancelled by its user"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_ends_with_everything_that_it_started(
    tmp_path: Path, models_dir: Path, how: signal.Signals
) -> None:
    environment = environment_of(tmp_path, {"MODELS_DIR": str(models_dir)})
    up = subprocess.Popen(
        [sys.executable, "-m", "app", "up", "--quiet"],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: len(processes_of(tmp_path)) >= 4, what="the processes are there")
    # Sooner than they can be ready: an impatient user's Ctrl-C.
    up.send_signal(how)
    assert up.wait(60) == 0
    assert processes_of(tmp_path) == []


def test_nothing_outlives_an_up_that_is_killed(tmp_path: Path, models_dir: Path) -> None:
    environment = environment_of(tmp_path, {"MODELS_DIR": str(models_dir)})
    up = subprocess.Popen(
        [sys.executable, "-m", "app", "up", "--quiet"],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: len(processes_of(tmp_path)) >= 4, what="the processes are there")
    up.kill()
    up.wait()
    eventually(lambda: processes_of(tmp_path) == [], what="all have ended", within_seconds=60)


@on_sqlite
def test_a_running_job_pauses_with_a_checkpoint_and_goes_on_from_it(
    stack: Service, user: OpenAI
) -> None:
    trainer = stack.pid("trainer")
    job = long_job(user)
    wait_until_step(user, job, 1)
    asked = user.fine_tuning.jobs.pause(job.id)
    assert asked.status == "running"
    assert (asked.model_extra or {})["tunesmith"]["pause_requested"] is True
    eventually(lambda: status_of(user, job) == "paused", what="the job is paused")
    # The device is free meanwhile.
    assert wait_until_ended(user, short_job(user)).status == "succeeded"
    assert status_of(user, job) == "paused"
    user.fine_tuning.jobs.resume(job.id)
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    steps = steps_told(user, job)
    assert len(steps) == len(set(steps))
    assert progress_of(ended)["attempt"] == 1
    assert stack.pid("trainer") == trainer


@on_postgres
def test_a_damaged_checkpoint_is_left_for_the_one_before(stack: Service, user: OpenAI) -> None:
    job = long_job(user)
    wait_until_step(user, job, 2 * STEPS_PER_EPOCH)
    user.fine_tuning.jobs.pause(job.id)
    eventually(lambda: status_of(user, job) == "paused", what="the job is paused")
    with stack.database() as database, database.read() as connection:
        row = jobs.find(connection, job.id)
    assert row is not None
    assert row.resume_prefix is not None
    assert row.fallback_step is not None
    flip_a_bit(stack, f"{row.resume_prefix}/state/optimizer.safetensors")
    user.fine_tuning.jobs.resume(job.id)
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert f"Resuming from step {row.fallback_step}" in told(user, job)
    assert "the checkpoint is damaged: state/optimizer.safetensors" in told(user, job)


def status_of(user: OpenAI, job: FineTuningJob) -> str:
    return user.fine_tuning.jobs.retrieve(job.id).status


def flip_a_bit(stack: Service, key: str) -> None:
    path = Path(stack.settings.storage_url.removeprefix("file://")) / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
