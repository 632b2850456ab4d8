"""Whatever dies in the middle of a job or an answer, the job goes on and succeeds."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIConnectionError, APIError, InternalServerError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.support.factories import BASE_MODEL
from tests.support.jobs import (
    create_job,
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

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(stack: Service) -> Iterator[OpenAI]:
    with stack.client() as client:
        yield client


def disturbed_job(client: OpenAI) -> FineTuningJob:
    return create_job(
        client,
        records=2 * STEPS_PER_EPOCH,
        hyperparameters={"n_epochs": EPOCHS, "batch_size": 2},
    )


def short_job(client: OpenAI) -> FineTuningJob:
    return create_job(client, records=2, hyperparameters={"n_epochs": 1, "batch_size": 2})


def told(client: OpenAI, job: FineTuningJob) -> str:
    return "\n".join(event.message for event in story_of(client, job))


def steps_told(client: OpenAI, job: FineTuningJob) -> list[int]:
    numbers = [event.to_dict()["data"] for event in story_of(client, job) if event.data]
    return [one["step"] for one in numbers if "train_loss" in one]  # type: ignore[index,call-overload,operator]


def assert_it_resumed(client: OpenAI, job: FineTuningJob) -> None:
    ended = wait_until_ended(client, job)
    assert ended.status == "succeeded", ended.error
    assert "Resuming from step" in told(client, job)
    assert ended.to_dict()["tunesmith"]["progress"]["attempt"] == 2  # type: ignore[index,call-overload]
    # Steps that were taken before the last checkpoint are not taken again.
    assert steps_told(client, job).count(1) == 1
    assert steps_told(client, job)[-1] == STEPS
    checkpoints = [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert checkpoints == [6, 4, 2]
    answer = client.chat.completions.create(
        model=ended.fine_tuned_model or "", messages=HELLO, max_completion_tokens=2
    )
    assert answer.choices


@on_sqlite
def test_a_killed_trainer_costs_no_more_than_the_last_steps(stack: Service, client: OpenAI) -> None:
    job = disturbed_job(client)
    wait_until_step(client, job, STEPS_PER_EPOCH + 1)
    stack.kill("trainer")
    assert_it_resumed(client, job)
    assert "signal SIGKILL" in told(client, job)


def test_a_killed_worker_is_replaced_and_its_job_goes_on(stack: Service, client: OpenAI) -> None:
    job = disturbed_job(client)
    wait_until_step(client, job, STEPS_PER_EPOCH + 1)
    trainer = psutil.Process(stack.pid("trainer"))
    stack.kill("worker")
    # A trainer whose supervisor is gone takes no step more: another one may hold the job.
    eventually(lambda: not trainer.is_running(), what="the trainer followed", within_seconds=15)
    assert_it_resumed(client, job)
    assert "fell silent" in told(client, job)


@on_sqlite
def test_a_killed_engine_ends_its_answers_and_no_job(stack: Service, client: OpenAI) -> None:
    job = disturbed_job(client)
    wait_until_step(client, job, 1)
    stream = client.chat.completions.create(
        model=BASE_MODEL, messages=HELLO, stream=True, max_completion_tokens=2_000, temperature=2
    )
    assert next(stream).choices
    stack.kill("engine")
    with pytest.raises(APIError, match="engine"):
        list(stream)
    ended = wait_until_ended(client, job)
    assert ended.status == "succeeded", ended.error
    assert ended.to_dict()["tunesmith"]["progress"]["attempt"] == 1  # type: ignore[index,call-overload]

    def answers() -> bool:
        with suppress(InternalServerError):
            return bool(
                client.chat.completions.create(
                    model=ended.fine_tuned_model or "", messages=HELLO, max_completion_tokens=2
                )
            )
        return False

    eventually(answers, what="the engine answers again", within_seconds=90)


@on_postgres
def test_a_killed_api_comes_back_and_loses_nothing(stack: Service, client: OpenAI) -> None:
    job = short_job(client)
    stack.kill("api")

    def is_back() -> bool:
        with suppress(APIConnectionError):
            return client.fine_tuning.jobs.retrieve(job.id).id == job.id
        return False

    eventually(is_back, what="the API answers again", within_seconds=60)
    assert wait_until_ended(client, job).status == "succeeded"


@on_postgres
def test_a_cancelled_job_stops_and_leaves_the_trainer_to_the_next(
    stack: Service, client: OpenAI
) -> None:
    trainer = stack.pid("trainer")
    job = create_job(client, records=2, hyperparameters={"n_epochs": 50, "batch_size": 2})
    wait_until_step(client, job, 1)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    ended = wait_until_ended(client, short_job(client))
    assert ended.status == "succeeded", ended.error
    assert stack.pid("trainer") == trainer
    cancelled = client.fine_tuning.jobs.retrieve(job.id)
    assert cancelled.status == "cancelled"
    assert (cancelled.fine_tuned_model, cancelled.result_files) == (None, [])
    assert story_of(client, job)[-1].message == "Fine-tuning job cancelled by its user"


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
