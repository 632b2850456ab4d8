"""What a job made is taken away as files, and another job starts from it."""

import pytest
from openai import OpenAI

from app.db.repositories import adapters
from app.storage import open_storage
from tests.support.adapters import zipped
from tests.support.answers import ask, text_of
from tests.support.jobs import Run, create_job, numbers_of, story_of, wait_until_ended
from tests.support.service import Service


def test_training_goes_on_from_an_adapter_that_was_uploaded(
    stack: Service, user: OpenAI, run: Run
) -> None:
    with stack.http(stack.key) as http:
        answer = http.post(
            "/v1/files",
            data={"purpose": "adapter"},
            files={"file": ("desk.zip", zipped(files_of(stack, run.model), "desk/"))},
        )
    assert answer.status_code == 200, answer.text
    job = create_job(
        user,
        records=4,
        validation_records=2,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        tunesmith={"start_from": {"file": answer.json()["id"]}},
    )
    details = job.to_dict()["tunesmith"]
    assert details["adapter"]["r"] == 4  # type: ignore[index]

    ended = wait_until_ended(user, job)

    assert ended.status == "succeeded", ended.error
    # Both were judged on the same two records.
    assert losses_of(user, job.id)[0] == pytest.approx(losses_of(user, run.job.id)[-1], abs=1e-4)
    assert text_of(ask(user, ended.fine_tuned_model or "", max_completion_tokens=2))


def files_of(stack: Service, model: str) -> dict[str, bytes]:
    """Return the files of a fine-tuned model as they are stored."""
    project = stack.project_of(stack.key)
    with stack.database() as database, database.read() as connection:
        adapter = adapters.find(connection, project, model)
    assert adapter is not None
    directory = open_storage(stack.settings.storage_url).directory(adapter.storage_prefix)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def losses_of(user: OpenAI, job_id: str) -> list[float]:
    """Return the losses on held-out records, the first before any step."""
    numbers = numbers_of(story_of(user, user.fine_tuning.jobs.retrieve(job_id)))
    return [one["valid_loss"] for one in numbers if "valid_loss" in one]
