"""Fine-tuning jobs over the wire, through OpenAI's own client; no worker is there to run them."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.support.factories import BASE_MODEL, dataset
from tests.support.polling import eventually
from tests.support.wire import error_of, strict, strict_list


@pytest.fixture
def training_file(client: OpenAI) -> str:
    return client.files.create(file=("train.jsonl", dataset(12)), purpose="fine-tune").id


@pytest.fixture
def create(client: OpenAI, training_file: str) -> Callable[..., FineTuningJob]:
    def create(**more: Any) -> FineTuningJob:
        asked = {"model": BASE_MODEL, "training_file": training_file} | more
        return client.fine_tuning.jobs.create(**asked)

    return create


def wait_until_queued(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    def queued() -> FineTuningJob | None:
        found = client.fine_tuning.jobs.retrieve(job.id)
        return found if found.status == "queued" else None

    found = eventually(queued, what="the job is queued")
    assert found is not None
    return found


def test_a_job_is_created_with_the_least(client: OpenAI, training_file: str) -> None:
    answer = client.fine_tuning.jobs.with_raw_response.create(
        model=BASE_MODEL, training_file=training_file
    )
    job = strict(answer, FineTuningJob)
    assert job.id.startswith("ftjob-")
    assert job.status == "validating_files"
    assert (job.model, job.training_file, job.validation_file) == (BASE_MODEL, training_file, None)
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None, None, None)
    assert (job.result_files, job.error, job.metadata) == ([], None, None)
    assert job.organization_id.startswith("org-")
    assert job.hyperparameters.n_epochs == "auto"
    assert job.method is not None
    assert job.method.type == "supervised"


def test_what_was_asked_for_is_what_is_told(client: OpenAI, training_file: str) -> None:
    hyperparameters = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 0.5}
    answer = client.fine_tuning.jobs.with_raw_response.create(
        model=BASE_MODEL,
        training_file=training_file,
        validation_file=training_file,
        suffix="desk",
        seed=2**31 - 1,
        metadata={"team": "s"},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={
            "tunesmith": {
                "adapter": {"type": "lora", "r": 4, "alpha": 8, "target_modules": ["q_proj"]},
                "training": {"scheduler": "linear", "max_length_tokens": 512},
            }
        },
    )
    job = strict(answer, FineTuningJob)
    assert job.validation_file == training_file
    assert job.seed == 2**31 - 1
    assert job.metadata == {"team": "s"}
    assert job.hyperparameters.to_dict() == hyperparameters
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.to_dict() == {"hyperparameters": hyperparameters}
    extension = job.to_dict()["tunesmith"]
    assert extension["task"] == "text-generation"
    assert extension["adapter"] == {
        "type": "lora",
        "r": 4,
        "alpha": 8,
        "dropout": 0.0,
        "target_modules": ["q_proj"],
        "use_rslora": False,
        "use_dora": False,
        "init": "default",
        "lora_plus_ratio": None,
    }
    assert extension["training"]["scheduler"] == "linear"
    assert extension["training"]["max_length_tokens"] == 512


def test_the_deprecated_hyperparameters_still_work(create: Callable[..., FineTuningJob]) -> None:
    job = create(hyperparameters={"n_epochs": 2})
    assert job.hyperparameters.n_epochs == 2
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.n_epochs == 2


def test_without_a_seed_each_job_has_one_of_its_own(create: Callable[..., FineTuningJob]) -> None:
    assert create().seed != create().seed


def test_a_valid_job_is_queued_with_auto_resolved(
    client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    job = wait_until_queued(client, create())
    assert job.hyperparameters.to_dict() == {
        "n_epochs": 10,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    answer = client.fine_tuning.jobs.with_raw_response.retrieve(job.id)
    assert strict(answer, FineTuningJob) == job


def test_a_jobs_story_is_told_newest_first(
    client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    job = wait_until_queued(client, create())
    answer = client.fine_tuning.jobs.with_raw_response.list_events(job.id)
    events = strict_list(answer, FineTuningJobEvent, keys={"has_more"})
    assert [event.message.split(" = ")[0] for event in events][::-1] == [
        f"Created fine-tuning job: {job.id}",
        "Files validated, moving job to queued state",
        "n_epochs",
        "batch_size",
        "learning_rate_multiplier",
        "holdout",
    ]
    walked = [event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert walked == [event.id for event in events]


def test_a_job_without_checkpoints_has_an_empty_list(
    client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    answer = client.fine_tuning.jobs.checkpoints.with_raw_response.list(create().id)
    keys = {"first_id", "last_id", "has_more"}
    assert strict_list(answer, FineTuningJobCheckpoint, keys=keys) == []


def test_a_queued_job_is_paused_and_resumed(
    client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    job = create()
    # OpenAI's own example says so, though its list of statuses does not hold it.
    assert str(client.fine_tuning.jobs.pause(job.id).status) == "paused"
    with pytest.raises(BadRequestError, match="paused") as again:
        client.fine_tuning.jobs.pause(job.id)
    assert again.value.code == "invalid_job_state"
    resumed = strict(client.fine_tuning.jobs.with_raw_response.resume(job.id), FineTuningJob)
    assert resumed.status in ("validating_files", "queued")
    with pytest.raises(BadRequestError, match="only a paused job"):
        client.fine_tuning.jobs.resume(job.id)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert "Fine-tuning job paused by its user" in messages
    assert "Fine-tuning job resumed by its user" in messages


def test_a_job_is_cancelled_once(client: OpenAI, create: Callable[..., FineTuningJob]) -> None:
    job = wait_until_queued(client, create())
    answer = client.fine_tuning.jobs.with_raw_response.cancel(job.id)
    cancelled = strict(answer, FineTuningJob)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert cancelled.fine_tuned_model is None
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.cancel(job.id)
    assert refused.value.code == "invalid_job_state"
    assert "cancelled" in refused.value.message
    assert client.fine_tuning.jobs.retrieve(job.id) == cancelled


@pytest.mark.parametrize("body", [b"", b"{}", b"null"], ids=["no_body", "empty_object", "null"])
def test_a_job_is_cancelled_whatever_the_body(
    http: httpx.Client, create: Callable[..., FineTuningJob], body: bytes
) -> None:
    answer = http.post(
        f"/v1/fine_tuning/jobs/{create().id}/cancel",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert strict(answer, FineTuningJob).status == "cancelled"


def test_jobs_are_listed_newest_first(client: OpenAI, create: Callable[..., FineTuningJob]) -> None:
    made = [create().id for _ in range(5)]
    answer = client.fine_tuning.jobs.with_raw_response.list(limit=3)
    listed = strict_list(answer, FineTuningJob, keys={"has_more"})
    assert [job.id for job in listed] == made[:1:-1]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]


@pytest.mark.parametrize("pair", ["team", "a b", "a.b", "a'b", 'a"b', "a\\b", "a[b]", "é", "&=#"])
def test_jobs_are_listed_by_metadata(
    client: OpenAI, create: Callable[..., FineTuningJob], pair: str
) -> None:
    wanted = create(metadata={pair: "one", "more": "x"})
    create(metadata={pair: "two"})
    create()
    found = client.fine_tuning.jobs.list(metadata={pair: "one"})
    assert [job.id for job in found] == [wanted.id]


def test_jobs_without_metadata_are_listed_by_null(
    client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    create(metadata={"team": "support"})
    plain = create()
    listed = client.fine_tuning.jobs.list(metadata="null")  # type: ignore[arg-type]
    assert [job.id for job in listed] == [plain.id]


@pytest.mark.parametrize("metadata", ["support", "", "{}"])
def test_a_metadata_filter_that_is_none_is_refused(http: httpx.Client, metadata: str) -> None:
    answer = http.get("/v1/fine_tuning/jobs", params={"metadata": metadata})
    assert error_of(answer, 400)["param"] == "metadata"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"after": "ftjob-none"}, "after"),
    ],
)
def test_a_bad_query_is_refused_by_name(
    http: httpx.Client, query: dict[str, Any], param: str
) -> None:
    assert error_of(http.get("/v1/fine_tuning/jobs", params=query), 400)["param"] == param


def test_metadata_may_be_as_large_as_openais(create: Callable[..., FineTuningJob]) -> None:
    metadata = {f"{number:064}": "é" * 512 for number in range(16)}
    assert create(metadata=metadata).metadata == metadata


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown_model": ({"model": "gpt-4o-mini"}, "model", BASE_MODEL),
    "absent_fine_tuned_model": ({"model": "ft:x:y::z"}, "model", "does not exist"),
    "unknown_training_file": ({"training_file": "file-none"}, "training_file", "file-none"),
    "unknown_validation_file": ({"validation_file": "file-none"}, "validation_file", "file-none"),
    "unknown_field": ({"extra_body": {"modle": 1}}, "modle", "known here are model, "),
    "integrations": (
        {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]},
        "integrations",
        "is not supported here",
    ),
    "method": ({"method": {"type": "magic"}}, "method.type", "'supervised'"),
    "method_of_other_records": ({"method": {"type": "dpo"}}, "training_file", "preferred_output"),
    "batch_larger_than_the_set": (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 13}}}},
        "method.supervised.hyperparameters.batch_size",
        "12 records",
    ),
    "longer_than_the_model_takes": (
        {"extra_body": {"tunesmith": {"training": {"max_length_tokens": 8193}}}},
        "tunesmith.training.max_length_tokens",
        "8193 is more than the 8192 tokens",
    ),
    "layers_that_are_not_there": (
        {"extra_body": {"tunesmith": {"adapter": {"target_modules": ["q_proj", "query"]}}}},
        "tunesmith.adapter.target_modules",
        "no layer named query; it has down_proj, ",
    ),
    "all_layers_frozen": (
        {"extra_body": {"tunesmith": {"training": {"freeze_layers": 30}}}},
        "tunesmith.training.freeze_layers",
        "has 30",
    ),
    "suffix": ({"suffix": "a b/c:d"}, "suffix", "pattern"),
    "long_suffix": ({"suffix": "x" * 65}, "suffix", "64"),
    "seed": ({"seed": 2**31}, "seed", "2147483647"),
    "metadata": ({"metadata": {"a": 1}}, "metadata.a", "string"),
}


@pytest.mark.parametrize(("asked", "param", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_by_its_field_and_nothing_is_made(
    client: OpenAI,
    create: Callable[..., FineTuningJob],
    asked: dict[str, Any],
    param: str,
    told: str,
) -> None:
    with pytest.raises(BadRequestError) as refused:
        create(**asked)
    assert refused.value.param == param
    assert told in refused.value.message
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_deleted_file_cannot_be_trained_on(
    client: OpenAI, create: Callable[..., FineTuningJob], training_file: str
) -> None:
    client.files.delete(training_file)
    with pytest.raises(BadRequestError) as refused:
        create()
    assert refused.value.param == "training_file"


@pytest.mark.parametrize("use", ["retrieve", "cancel", "list_events"])
def test_a_job_that_is_not_there_is_not_found(client: OpenAI, use: str) -> None:
    with pytest.raises(NotFoundError) as missed:
        getattr(client.fine_tuning.jobs, use)("ftjob-none")
    assert "ftjob-none" in missed.value.message
    assert missed.value.param == "fine_tuning_job_id"
