"""The main job from end to end, on real processes with a real model: upload, train, call."""

import csv
import io
import json
import re
import secrets
from itertools import pairwise

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import FileObject, Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.support.answers import ask, text_of
from tests.support.factories import BASE_MODEL
from tests.support.jobs import (
    EPOCHS,
    STEPS,
    STEPS_PER_EPOCH,
    Run,
    create_job,
    numbers_of,
    progress_of,
    story_of,
    support_desk,
    wait_until_ended,
)
from tests.support.service import Service
from tests.support.wire import strict, strict_list


@pytest.fixture(scope="session")
def events(user: OpenAI, run: Run) -> list[FineTuningJobEvent]:
    """The job's story, oldest first."""
    answer = user.fine_tuning.jobs.with_raw_response.list_events(run.job.id, limit=100)
    return strict_list(answer, FineTuningJobEvent, keys={"has_more"})[::-1]


def test_a_job_goes_from_state_to_state(run: Run) -> None:
    order = ["validating_files", "queued", "running", "succeeded"]
    assert [status for status in order if status in run.statuses] == run.statuses
    assert {"running", "succeeded"} <= set(run.statuses)


def test_an_ended_job_tells_everything(user: OpenAI, run: Run) -> None:
    job = strict(user.fine_tuning.jobs.with_raw_response.retrieve(run.job.id), FineTuningJob)
    assert re.fullmatch(rf"ft:{BASE_MODEL}:default:desk:\w{{12}}", run.model)
    assert job.fine_tuned_model == run.model
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    assert (job.error, job.estimated_finish) == (None, None)
    assert job.trained_tokens is not None
    assert job.trained_tokens > 100 * STEPS
    assert (job.seed, job.metadata) == (7, {"team": "support"})
    assert job.hyperparameters.to_dict() == {
        "n_epochs": EPOCHS,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    progress = progress_of(job)
    assert (progress["step"], progress["total_steps"], progress["attempt"]) == (STEPS, STEPS, 1)


def test_the_story_has_every_chapter_in_order(run: Run, events: list[FineTuningJobEvent]) -> None:
    told = [event.message for event in events if event.type == "message"]
    chapters = [
        f"Created fine-tuning job: {run.job.id}",
        "Files validated, moving job to queued state",
        "learning_rate_multiplier = 1.0 (auto",
        "Fine-tuning job started",
        f"Training file: {4 * STEPS_PER_EPOCH} records",
        f"Checkpoint created at step {STEPS_PER_EPOCH}",
        f"Checkpoint created at step {STEPS}",
        "The job has successfully completed",
        f"New model: {run.model}",
    ]
    places = [
        next(place for place, line in enumerate(told) if line.startswith(chapter))
        for chapter in chapters
    ]
    assert places == sorted(places)
    assert all(event.level == "info" for event in events)


def test_numbers_are_told_as_the_job_runs(events: list[FineTuningJobEvent]) -> None:
    steps = [numbers for numbers in numbers_of(events) if "train_loss" in numbers]
    assert steps[-1]["step"] == STEPS
    for before, after in pairwise(steps):
        assert before["step"] < after["step"]
        assert before["trained_tokens"] < after["trained_tokens"]
    for numbers in steps:
        assert numbers["total_steps"] == STEPS
        assert numbers["train_loss"] > 0
        assert 0 <= numbers["train_mean_token_accuracy"] <= 1
        assert numbers["tokens_per_second"] > 0
        assert numbers["eta_seconds"] >= 0


def test_the_loss_on_held_out_records_falls(events: list[FineTuningJobEvent]) -> None:
    losses = [
        (numbers["step"], numbers["valid_loss"])
        for numbers in numbers_of(events)
        if "valid_loss" in numbers
    ]
    assert [step for step, _ in losses] == [0, STEPS_PER_EPOCH, STEPS]
    assert losses[-1][1] < losses[0][1] - 0.1


def test_each_epoch_ends_with_a_checkpoint(
    run: Run, checkpoints: list[FineTuningJobCheckpoint]
) -> None:
    assert [one.step_number for one in checkpoints] == [STEPS, STEPS_PER_EPOCH]
    for one in checkpoints:
        assert one.fine_tuning_job_id == run.job.id
        assert one.fine_tuned_model_checkpoint == f"{run.model}:ckpt-step-{one.step_number}"
        assert one.metrics.step == one.step_number
        assert one.metrics.train_loss is not None
        assert one.metrics.full_valid_loss is not None
        assert one.metrics.full_valid_mean_token_accuracy is not None


def test_the_results_are_a_table_of_every_step(user: OpenAI, run: Run) -> None:
    file_id, *report = run.job.result_files
    names = [user.files.retrieve(one).filename for one in report]
    assert names == ["report.json", "report.md", "loss.png", "loss.svg"]
    file = strict(user.files.with_raw_response.retrieve(file_id), FileObject)
    assert file.purpose == "fine-tune-results"
    rows = list(csv.DictReader(io.StringIO(user.files.content(file_id).read().decode())))
    assert list(rows[0]) == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert rows[-1]["valid_loss"]


def test_the_results_cannot_be_trained_on(user: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError) as refused:
        user.fine_tuning.jobs.create(model=BASE_MODEL, training_file=run.job.result_files[0])
    assert refused.value.param == "training_file"
    assert "'fine-tune-results'" in refused.value.message


def test_a_fine_tuned_model_is_listed_and_its_checkpoints_are_not(user: OpenAI, run: Run) -> None:
    listed = [
        one.id for one in strict_list(user.models.with_raw_response.list(), Model, keys=set())
    ]
    assert listed[0] == BASE_MODEL
    assert run.model in listed
    assert not [name for name in listed if "ckpt-step" in name]


def test_jobs_are_found_by_their_metadata(user: OpenAI, run: Run) -> None:
    found = user.fine_tuning.jobs.list(metadata={"team": "support"})
    assert [job.id for job in found] == [run.job.id]


def test_training_goes_on_from_a_fine_tuned_model_in_a_warm_trainer(
    stack: Service, user: OpenAI, run: Run
) -> None:
    trainer = stack.pid("trainer")
    job = create_job(
        user,
        records=4,
        validation_records=2,
        model=run.model,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        tunesmith=None,
    )
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert ended.model == run.model
    name = ended.fine_tuned_model or ""
    assert name.startswith(f"ft:{BASE_MODEL}:default:")
    assert name != run.model
    assert first_loss(user, job) < first_loss(user, run.job)
    assert stack.pid("trainer") == trainer
    assert text_of(ask(user, name, max_completion_tokens=2))


def first_loss(user: OpenAI, job: FineTuningJob) -> float:
    """Return the loss on held-out records before the first step."""
    numbers = numbers_of(story_of(user, job))
    loss: float = next(one["valid_loss"] for one in numbers if "valid_loss" in one)
    return loss


def test_an_adapter_keeps_its_shape(user: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError) as refused:
        create_job(user, records=4, model=run.model, tunesmith={"adapter": {"r": 2}})
    assert refused.value.param == "tunesmith.adapter"


def test_another_project_cannot_call_the_model(stack: Service, run: Run) -> None:
    with stack.client(stack.new_key(secrets.token_hex(4))) as stranger:
        with pytest.raises(NotFoundError) as missed:
            ask(stranger, run.model)
        assert missed.value.code == "model_not_found"
        assert {model.owned_by for model in stranger.models.list()} == {"operator"}


def test_a_deleted_model_is_gone_with_its_weights_and_earlier_checkpoints_stay(
    user: OpenAI,
) -> None:
    job = create_job(user, records=2, hyperparameters={"n_epochs": 2, "batch_size": 2})
    model = wait_until_ended(user, job).fine_tuned_model or ""
    checkpoints = user.fine_tuning.jobs.checkpoints.list(job.id)
    last, first = (one.fine_tuned_model_checkpoint for one in checkpoints)
    assert text_of(ask(user, model))
    assert user.models.delete(model).deleted
    # The last checkpoint is another name of the same weights.
    for name in (model, last):
        for use in (user.models.retrieve, lambda name: ask(user, name)):
            with pytest.raises(NotFoundError):
                use(name)
    assert text_of(ask(user, first))
    assert user.models.delete(first).deleted
    with pytest.raises(NotFoundError):
        ask(user, first)


def test_a_dataset_without_anything_to_learn_fails_before_the_first_step(user: OpenAI) -> None:
    lines = [json.loads(line) for line in support_desk("train", 3).splitlines()]
    for line in lines:
        for message in line["messages"]:
            if message["role"] == "assistant":
                message["weight"] = 0
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    job = create_job(user, content=content)
    ended = wait_until_ended(user, job)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.param) == ("invalid_training_file", "training_file")
    assert re.search(r"\b1, 2, 3\b", ended.error.message)
    assert ended.fine_tuned_model is None
