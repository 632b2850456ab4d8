"""From `validating_files` to `queued` or `failed`, as the sweep does it."""

from typing import Any

import pytest

from app.base_models.catalogue import DEFAULT_CATALOGUE
from app.db.repositories import files
from app.domain.job_spec import JobSpec
from app.domain.job_state import JobStatus
from app.resources import Resources
from app.services.sweeper import Sweeper
from tests.support.datasets import as_jsonl
from tests.support.factories import (
    BASE_MODEL,
    add_job,
    add_project,
    dataset,
    extension,
    store_dataset,
)
from tests.support.sweeping import new_job, now_is, received, told


def test_a_new_job_is_validated_resolved_and_sent(resources: Resources, sweeper: Sweeper) -> None:
    job = new_job(resources, dataset(12))
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.QUEUED
    assert after.hyperparameters == {
        "n_epochs": 10,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    assert after.spec is not None
    spec = JobSpec.from_json(after.spec)
    assert (spec.job_id, spec.base_model, spec.seed) == (job.id, BASE_MODEL, 7)
    assert spec.training_file.record_count == 12
    assert spec.hyperparameters.num_epochs == 10
    assert after.dispatched_at is not None
    assert received(resources) == [job.id]


def test_every_auto_value_is_told_with_its_reason(resources: Resources, sweeper: Sweeper) -> None:
    job = new_job(resources)
    sweeper.sweep()
    story = told(resources, job)
    assert story[1] == "Files validated, moving job to queued state"
    assert [line.split(" = ")[0] for line in story[2:]] == [
        "n_epochs",
        "batch_size",
        "learning_rate_multiplier",
        "holdout",
    ]
    assert all("(auto: " in line for line in story[2:])


def test_records_are_never_cut_beyond_the_models_context(
    resources: Resources, sweeper: Sweeper
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project)
        training = {"max_length_tokens": 10**9}
        job = add_job(
            connection,
            project,
            training_file=file.id,
            extension=extension(training=training),
        )
    sweeper.sweep()
    spec = JobSpec.from_json(now_is(resources, job).spec or "")
    context_length = resources.catalogue.get(BASE_MODEL).context_length
    assert spec.hyperparameters.max_length_tokens == context_length


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
@pytest.mark.parametrize("mishap", ["damaged", "deleted"])
def test_a_job_without_its_content_fails_by_the_field(
    resources: Resources, sweeper: Sweeper, param: str, mishap: str
) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        good, bad = (store_dataset(connection, resources.storage, project) for _ in range(2))
        job = add_job(connection, project, **({"training_file": good.id} | {param: bad.id}))
        if mishap == "deleted":
            files.remove(connection, project, bad.id)
    if mishap == "damaged":
        resources.storage.delete(bad.storage_key)
        resources.storage.put(bad.storage_key, [b"something else"])
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert after.error["param"] == param
    assert after.error["code"] == ("file_damaged" if mishap == "damaged" else "file_not_found")
    assert bad.id in after.error["message"]
    assert after.finished_at is not None
    assert received(resources) == []


def test_a_job_whose_base_model_left_the_catalogue_fails(
    resources: Resources, sweeper: Sweeper
) -> None:
    job = new_job(resources)
    text = DEFAULT_CATALOGUE.read_text().replace(f'"{BASE_MODEL}"', '"another"')
    resources.settings.catalogue_path.write_text(text)
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert after.error["code"] == "model_not_found"


def test_a_job_that_cannot_be_checked_for_now_holds_up_no_other(
    resources: Resources, sweeper: Sweeper
) -> None:
    stuck, other = new_job(resources), new_job(resources)
    with resources.database.read() as connection:
        file = files.get(connection, stuck.project_id, stuck.training_file)
    # Reading a directory fails as a disk does: with an OSError.
    resources.storage.delete(file.storage_key)
    resources.storage.put(f"{file.storage_key}/something", [b"else"])
    for _ in range(2):
        try:
            sweeper.sweep()
        except OSError:
            continue
    assert now_is(resources, other).status is JobStatus.QUEUED
    assert received(resources) == [other.id]


@pytest.mark.parametrize(
    ("labels", "weights", "param"),
    [
        (["a", "a"], None, "training_file"),
        (["a", "b"], {"c": 2.0}, "tunesmith.training.class_weights"),
        (["a", "b"], {"b": 2.0}, None),
        ([0.5, 0.5], None, None),
        ([["a"], []], None, None),
        ([[], []], None, "training_file"),
    ],
)
def test_classes_are_checked_before_a_worker_is_asked(
    resources: Resources, sweeper: Sweeper, labels: list[Any], weights: Any, param: str | None
) -> None:
    records = [
        {"text": "x", ("labels" if isinstance(label, list) else "label"): label} for label in labels
    ]
    training = {"class_weights": weights} if weights else {}
    with resources.database.write() as connection:
        project = add_project(connection)
        file = store_dataset(connection, resources.storage, project, as_jsonl(records))
        asked = extension(task="text-classification", training=training)
        job = add_job(connection, project, training_file=file.id, extension=asked)
    sweeper.sweep()
    after = now_is(resources, job)
    assert after.status is (JobStatus.QUEUED if param is None else JobStatus.FAILED)
    assert (after.error or {}).get("param") == param
