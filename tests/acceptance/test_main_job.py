"""The main job from end to end, on real processes with a real model: upload, train, call."""

import csv
import io
import json
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Completion, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.support.factories import BASE_MODEL
from tests.support.jobs import create_job, support_desk, wait_until_ended
from tests.support.service import Service
from tests.support.wire import strict, strict_list, strict_object

EPOCHS = 2
STEPS_PER_EPOCH = 2
STEPS = EPOCHS * STEPS_PER_EPOCH

QUESTION = [{"role": "user", "content": "Where is my parcel? It was due on Monday."}]


@dataclass(frozen=True)
class Run:
    """A job that has ended, and what was seen of it while it ran."""

    job: FineTuningJob
    statuses: list[str]
    model: str


@pytest.fixture(scope="session")
def client(stack: Service) -> Iterator[OpenAI]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def run(client: OpenAI) -> Run:
    """A short job on a part of the sample data, which most of the tests look at."""
    job = create_job(
        client,
        records=4 * STEPS_PER_EPOCH,
        validation_records=2,
        hyperparameters={"n_epochs": EPOCHS, "batch_size": 4},
        suffix="desk",
        seed=7,
        metadata={"team": "support"},
    )
    statuses = [job.status]

    def note(seen: FineTuningJob) -> None:
        if seen.status != statuses[-1]:
            statuses.append(seen.status)

    ended = wait_until_ended(client, job, note)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model is not None
    # The moment it has succeeded, its model can be called.
    client.chat.completions.create(
        model=ended.fine_tuned_model, messages=QUESTION, max_completion_tokens=1
    )
    return Run(ended, statuses, ended.fine_tuned_model)


@pytest.fixture(scope="session")
def events(client: OpenAI, run: Run) -> list[FineTuningJobEvent]:
    """The job's story, oldest first."""
    answer = client.fine_tuning.jobs.with_raw_response.list_events(run.job.id, limit=100)
    return strict_list(answer, FineTuningJobEvent, keys={"has_more"})[::-1]


@pytest.fixture(scope="session")
def checkpoints(client: OpenAI, run: Run) -> list[FineTuningJobCheckpoint]:
    answer = client.fine_tuning.jobs.checkpoints.with_raw_response.list(run.job.id)
    keys = {"first_id", "last_id", "has_more"}
    return strict_list(answer, FineTuningJobCheckpoint, keys=keys)


@pytest.fixture
def http(stack: Service) -> Iterator[Any]:
    with stack.http(stack.key) as http:
        yield http


def ask(client: OpenAI, model: str, **more: Any) -> ChatCompletion:
    """Return the likeliest answer to one question."""
    asked = {"messages": QUESTION, "max_completion_tokens": 12, "temperature": 0} | more
    answer = client.chat.completions.with_raw_response.create(model=model, **asked)
    return strict(answer, ChatCompletion)


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def test_a_job_goes_from_state_to_state(run: Run) -> None:
    order = ["validating_files", "queued", "running", "succeeded"]
    assert [status for status in order if status in run.statuses] == run.statuses
    assert {"running", "succeeded"} <= set(run.statuses)


def test_an_ended_job_tells_everything(client: OpenAI, run: Run) -> None:
    job = strict(client.fine_tuning.jobs.with_raw_response.retrieve(run.job.id), FineTuningJob)
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
    progress = job.to_dict()["tunesmith"]["progress"]
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


def numbers_of(events: list[FineTuningJobEvent]) -> list[dict[str, Any]]:
    return [event.to_dict()["data"] for event in events if event.type == "metrics"]  # type: ignore[misc]


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


def test_the_results_are_a_table_of_every_step(client: OpenAI, run: Run) -> None:
    (file_id,) = run.job.result_files
    file = strict(client.files.with_raw_response.retrieve(file_id), FileObject)
    assert file.purpose == "fine-tune-results"
    rows = list(csv.DictReader(io.StringIO(client.files.content(file_id).read().decode())))
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


def test_the_results_cannot_be_trained_on(client: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=run.job.result_files[0])
    assert refused.value.param == "training_file"
    assert "'fine-tune-results'" in refused.value.message


def test_a_fine_tuned_model_is_listed_and_its_checkpoints_are_not(client: OpenAI, run: Run) -> None:
    listed = [
        one.id for one in strict_list(client.models.with_raw_response.list(), Model, keys=set())
    ]
    assert listed[0] == BASE_MODEL
    assert run.model in listed
    assert not [name for name in listed if "ckpt-step" in name]


def test_jobs_are_found_by_their_metadata(client: OpenAI, run: Run) -> None:
    found = client.fine_tuning.jobs.list(metadata={"team": "support"})
    assert [job.id for job in found] == [run.job.id]


def test_the_tuned_model_answers_otherwise_than_the_base(client: OpenAI, run: Run) -> None:
    base, tuned = (
        ask(client, model, logprobs=True, max_completion_tokens=1)
        for model in (BASE_MODEL, run.model)
    )
    assert (base.model, tuned.model) == (BASE_MODEL, run.model)
    assert base.choices[0].logprobs is not None
    assert tuned.choices[0].logprobs is not None
    assert base.choices[0].logprobs.content != tuned.choices[0].logprobs.content


@pytest.mark.parametrize("which", ["base", "tuned", "checkpoint"])
class TestAnswers:
    @pytest.fixture
    def model(self, run: Run, checkpoints: list[FineTuningJobCheckpoint], which: str) -> str:
        names = {
            "base": BASE_MODEL,
            "tuned": run.model,
            "checkpoint": checkpoints[-1].fine_tuned_model_checkpoint,
        }
        return names[which]

    def test_usage_adds_up(self, client: OpenAI, model: str) -> None:
        answer = ask(client, model, max_completion_tokens=5)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 10
        assert answer.usage.completion_tokens <= 5
        total = answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.total_tokens == total
        is_cut = answer.choices[0].finish_reason == "length"
        assert is_cut == (answer.usage.completion_tokens == 5)

    def test_a_streamed_answer_is_the_whole_one_in_pieces(
        self, client: OpenAI, http: Any, model: str
    ) -> None:
        body = {
            "model": model,
            "messages": QUESTION,
            "max_completion_tokens": 12,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        *lines, end = http.post("/v1/chat/completions", json=body).content.split(b"\n\n")[:-1]
        assert end == b"data: [DONE]"
        chunks = [
            strict_object(line.removeprefix(b"data: "), ChatCompletionChunk) for line in lines
        ]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        whole = ask(client, model)
        assert chunks[-1].usage == whole.usage
        assert {chunk.model for chunk in chunks} == {model}
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == text_of(whole)
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason

    def test_a_text_is_continued(self, client: OpenAI, model: str) -> None:
        answer = client.completions.with_raw_response.create(
            model=model, prompt="Once upon a time", max_tokens=4, temperature=0, logprobs=2
        )
        completion = strict(answer, Completion)
        assert completion.choices[0].text
        assert completion.choices[0].logprobs is not None
        assert len(completion.choices[0].logprobs.tokens or ()) == 4


def test_an_answer_can_be_had_again_by_its_seed(client: OpenAI, run: Run) -> None:
    first, again, other = (
        text_of(ask(client, run.model, temperature=1.5, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_several_answers_are_numbered(client: OpenAI, run: Run) -> None:
    answer = ask(client, run.model, n=3, temperature=1, max_completion_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_an_answer_ends_before_a_stop(client: OpenAI, run: Run) -> None:
    whole = text_of(ask(client, run.model))
    stop = whole[4:7]
    stopped = ask(client, run.model, stop=[stop])
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_each_token_has_its_probability(client: OpenAI, run: Run) -> None:
    answer = ask(client, run.model, logprobs=True, top_logprobs=3, max_completion_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == text_of(answer)
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(one.logprob for one in token.top_logprobs) <= 0


def test_base_and_adapters_answer_at_once_as_they_do_alone(
    client: OpenAI, run: Run, checkpoints: list[FineTuningJobCheckpoint]
) -> None:
    models = [BASE_MODEL, run.model, checkpoints[-1].fine_tuned_model_checkpoint] * 2
    alone = {model: text_of(ask(client, model)) for model in set(models)}
    with ThreadPoolExecutor(max_workers=len(models)) as pool:
        together = list(pool.map(lambda model: text_of(ask(client, model)), models))
    assert together == [alone[model] for model in models]


def test_a_prompt_beyond_the_context_is_refused(client: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError, match="token") as refused:
        ask(client, run.model, messages=[{"role": "user", "content": "word " * 20_000}])
    assert refused.value.param in ("messages", "max_completion_tokens")


def test_training_goes_on_from_a_fine_tuned_model_in_a_warm_trainer(
    stack: Service, client: OpenAI, run: Run
) -> None:
    trainer = stack.pid("trainer")
    job = create_job(
        client,
        records=4,
        validation_records=2,
        model=run.model,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        tunesmith=None,
    )
    ended = wait_until_ended(client, job)
    assert ended.status == "succeeded", ended.error
    assert ended.model == run.model
    name = ended.fine_tuned_model or ""
    assert name.startswith(f"ft:{BASE_MODEL}:default:")
    assert name != run.model
    losses = [
        numbers["valid_loss"]
        for numbers in numbers_of(list(client.fine_tuning.jobs.list_events(job.id))[::-1])
        if "valid_loss" in numbers
    ]
    assert losses[0] < first_loss(client, run)
    assert stack.pid("trainer") == trainer
    assert text_of(ask(client, name, max_completion_tokens=2))


def first_loss(client: OpenAI, run: Run) -> float:
    """Return the loss of the base model, before the first step."""
    story = list(client.fine_tuning.jobs.list_events(run.job.id, limit=100))[::-1]
    loss: float = next(one["valid_loss"] for one in numbers_of(story) if "valid_loss" in one)
    return loss


def test_an_adapter_keeps_its_shape(client: OpenAI, run: Run) -> None:
    with pytest.raises(BadRequestError) as refused:
        create_job(client, records=4, model=run.model, tunesmith={"adapter": {"r": 2}})
    assert refused.value.param == "tunesmith.adapter"


def test_another_project_cannot_call_the_model(stack: Service, run: Run) -> None:
    with stack.client(stack.new_key(secrets.token_hex(4))) as stranger:
        with pytest.raises(NotFoundError) as missed:
            ask(stranger, run.model)
        assert missed.value.code == "model_not_found"
        assert [model.id for model in stranger.models.list()] == [BASE_MODEL]


def test_a_deleted_model_is_gone_and_its_checkpoints_stay(client: OpenAI) -> None:
    job = create_job(client, records=2, hyperparameters={"n_epochs": 1, "batch_size": 2})
    model = wait_until_ended(client, job).fine_tuned_model or ""
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert text_of(ask(client, model))
    assert client.models.delete(model).deleted
    for use in (client.models.retrieve, lambda name: ask(client, name)):
        with pytest.raises(NotFoundError):
            use(model)
    assert text_of(ask(client, checkpoint.fine_tuned_model_checkpoint))
    assert client.models.delete(checkpoint.fine_tuned_model_checkpoint).deleted
    with pytest.raises(NotFoundError):
        ask(client, checkpoint.fine_tuned_model_checkpoint)


def test_a_dataset_without_anything_to_learn_fails_before_the_first_step(client: OpenAI) -> None:
    lines = [json.loads(line) for line in support_desk("train", 3).splitlines()]
    for line in lines:
        for message in line["messages"]:
            if message["role"] == "assistant":
                message["weight"] = 0
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    job = create_job(client, content=content)
    ended = wait_until_ended(client, job)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.param) == ("invalid_training_file", "training_file")
    assert re.search(r"\b1, 2, 3\b", ended.error.message)
    assert ended.fine_tuned_model is None
