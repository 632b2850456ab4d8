"""Uploaded adapters over the wire, and jobs that ask to start from one; no worker runs them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.test_wire_files import stored_content
from tests.support.adapters import BASE_NAME, CONFIG, WEIGHTS, adapter_files, safetensors, zipped
from tests.support.factories import BASE_MODEL, dataset
from tests.support.polling import eventually
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of

LORA = {"type": "lora", "r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
CLASSIFIER = {"task": "text-classification", "outline": {"problem": "single_label", "labels": []}}


def upload(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post(
        "/v1/files", data={"purpose": "adapter"}, files={"file": ("mine.zip", content)}
    )


def uploaded(http: httpx.Client, **config: Any) -> str:
    answer = upload(http, zipped(adapter_files(config)))
    assert answer.status_code == 200, answer.text
    file_id: str = answer.json()["id"]
    return file_id


@pytest.fixture
def create(client: OpenAI) -> Callable[..., FineTuningJob]:
    """Create a job with fields of `tunesmith`, on a file of its own."""
    training_file = client.files.create(file=("train.jsonl", dataset()), purpose="fine-tune").id

    def create(model: str = BASE_MODEL, **tunesmith: Any) -> FineTuningJob:
        return client.fine_tuning.jobs.create(
            model=model, training_file=training_file, extra_body={"tunesmith": tunesmith}
        )

    return create


def details_of(job: FineTuningJob) -> dict[str, Any]:
    details: dict[str, Any] = job.to_dict()["tunesmith"]  # type: ignore[assignment]
    return details


def test_an_adapter_is_a_file_like_others(http: httpx.Client, client: OpenAI) -> None:
    content = zipped(adapter_files(), "my-adapter/")
    made = upload(http, content).json()
    assert (made["purpose"], made["filename"], made["bytes"]) == (
        "adapter",
        "mine.zip",
        len(content),
    )
    assert http.get(f"/v1/files/{made['id']}").json() == made
    assert http.get("/v1/files", params={"purpose": "adapter"}).json()["data"] == [made]
    assert client.files.content(made["id"]).read() == content
    assert client.files.delete(made["id"]).deleted
    assert http.get("/v1/files").json()["data"] == []


UPLOADS: Mapping[str, tuple[bytes, str]] = {
    "dataset": (dataset(), "the zip is damaged"),
    "pickle": (zipped({**adapter_files(), "adapter_model.bin": b"\x80\x02."}), "adapter_model.bin"),
    "no_weights": (zipped({CONFIG: adapter_files()[CONFIG]}), WEIGHTS),
    "kind": (zipped(adapter_files({"peft_type": "XLORA"})), "'XLORA'"),
    "header": (zipped(adapter_files(weights=b"\x80\x02." * 50)), "is not safetensors"),
    "cut": (zipped(adapter_files(weights=safetensors()[:-4])), "its header tells of"),
    "setting": (zipped(adapter_files({"use_qalora": True})), "'use_qalora'"),
}


@pytest.mark.parametrize(("content", "told"), UPLOADS.values(), ids=UPLOADS)
def test_what_is_no_adapter_is_refused_and_nothing_is_stored(
    api: Service, http: httpx.Client, content: bytes, told: str
) -> None:
    before = stored_content(api)
    error = error_of(upload(http, content), 400)
    assert (error["param"], error["code"]) == ("file", "invalid_file")
    assert told in error["message"]
    assert stored_content(api) == before


def test_an_adapter_counts_against_the_limit_of_uploads(api: Service, http: httpx.Client) -> None:
    content = zipped(adapter_files())
    content += bytes(api.settings.max_upload_bytes + 1 - len(content))
    assert error_of(upload(http, content), 413)["code"] == "too_large"


def test_a_job_has_the_shape_of_the_adapter_that_it_starts_from(
    http: httpx.Client, create: Callable[..., FineTuningJob], client: OpenAI
) -> None:
    file = uploaded(http)
    job = create(start_from={"file": file})
    assert job.model == BASE_MODEL
    details = details_of(job)
    assert details["start_from"] == {"file": file}
    assert {key: details["adapter"][key] for key in LORA} == LORA
    assert details_of(create())["start_from"] is None

    with pytest.raises(BadRequestError) as refused:
        client.files.delete(file)
    assert refused.value.code == "file_in_use"

    def queued() -> bool:
        return client.fine_tuning.jobs.retrieve(job.id).status == "queued"

    eventually(queued, what="the job is queued")
    assert warnings_of(client, job) == []
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file).deleted


def test_an_adapter_that_names_no_base_model_is_warned_of(
    http: httpx.Client, create: Callable[..., FineTuningJob], client: OpenAI
) -> None:
    file = uploaded(http, base_model_name_or_path="")
    job = create(start_from={"file": file})
    eventually(lambda: warnings_of(client, job), what="there is a warning")
    assert file in warnings_of(client, job)[0]
    client.fine_tuning.jobs.cancel(job.id)


def warnings_of(client: OpenAI, job: FineTuningJob) -> list[str]:
    events = client.fine_tuning.jobs.list_events(job.id)
    return [event.message for event in events if event.level == "warn"]


def test_an_adapter_may_name_its_base_model_as_the_catalogue_does(
    http: httpx.Client, create: Callable[..., FineTuningJob]
) -> None:
    assert create(start_from={"file": uploaded(http, base_model_name_or_path=BASE_MODEL)}).id


Mistake = tuple[dict[str, Any], dict[str, Any], str, str]
START = "tunesmith.start_from.file"
# Of the adapter, and of the request.
MISTAKES: Mapping[str, Mistake] = {
    "another_base": ({"base_model_name_or_path": "a/b"}, {}, START, f"'a/b'.*'{BASE_NAME}'"),
    "absent": ({}, {"start_from": {"file": "file-none"}}, START, "file-none"),
    "a_shape": ({}, {"adapter": {"r": 2}}, "tunesmith.adapter", "leave tunesmith.adapter out"),
    "unknown_field": (
        {},
        {"start_from": {"fil": "x"}},
        "tunesmith.start_from.fil",
        "Unknown field",
    ),
    "another_model": (
        {},
        {"model": "all-minilm-l6-v2", "task": "feature-extraction"},
        START,
        BASE_NAME,
    ),
}


@pytest.mark.parametrize(("config", "asked", "param", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_by_its_field(
    http: httpx.Client,
    create: Callable[..., FineTuningJob],
    config: dict[str, Any],
    asked: dict[str, Any],
    param: str,
    told: str,
) -> None:
    with pytest.raises(BadRequestError, match=told) as refused:
        create(**{"start_from": {"file": uploaded(http, **config)}, **asked})
    assert refused.value.param == param
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_a_dataset_is_no_adapter_and_an_adapter_no_dataset(
    http: httpx.Client, client: OpenAI, create: Callable[..., FineTuningJob]
) -> None:
    file = client.files.create(file=("train.jsonl", dataset()), purpose="fine-tune").id
    with pytest.raises(BadRequestError, match="expected 'adapter'") as refused:
        create(start_from={"file": file})
    assert refused.value.param == START
    with pytest.raises(BadRequestError, match="expected 'fine-tune'"):
        client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=uploaded(http))


def test_another_projects_adapter_is_not_found(
    api: Service, http: httpx.Client, create: Callable[..., FineTuningJob]
) -> None:
    with api.http(api.new_key("stranger")) as stranger:
        file = uploaded(stranger)
    with pytest.raises(BadRequestError) as refused:
        create(start_from={"file": file})
    assert (refused.value.param, refused.value.code) == (START, "file_not_found")


def test_p_tuning_cannot_be_gone_on_with(
    http: httpx.Client, create: Callable[..., FineTuningJob]
) -> None:
    config = {
        "peft_type": "P_TUNING",
        "base_model_name_or_path": BASE_NAME,
        "num_virtual_tokens": 4,
        "encoder_hidden_size": 8,
    }
    weights = safetensors({"prompt_embeddings": (4, 576)})
    content = zipped({CONFIG: json.dumps(config).encode(), WEIGHTS: weights})
    with pytest.raises(BadRequestError, match="its encoder") as refused:
        create(start_from={"file": upload(http, content).json()["id"]})
    assert refused.value.param == START


def test_a_task_beside_text_generation_needs_its_labels(http: httpx.Client, client: OpenAI) -> None:
    base = "all-minilm-l6-v2"
    records = [{"text": str(number), "label": "ab"[number % 2]} for number in range(4)]
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    training_file = client.files.create(file=("train.jsonl", content), purpose="fine-tune").id
    files = adapter_files({"base_model_name_or_path": base})

    def create(files: Mapping[str, bytes], **tunesmith: Any) -> FineTuningJob:
        start = {"file": upload(http, zipped(files)).json()["id"]}
        return client.fine_tuning.jobs.create(
            model=base,
            training_file=training_file,
            extra_body={"tunesmith": {"start_from": start, **tunesmith}},
        )

    with pytest.raises(BadRequestError, match="has no task") as refused:
        create(files)
    assert refused.value.param == START
    named = {**files, "task.json": json.dumps(CLASSIFIER).encode()}
    with pytest.raises(BadRequestError, match="was fine-tuned for text-classification") as refused:
        create(named, task="fill-mask")
    assert refused.value.param == "tunesmith.task"
    assert details_of(create(named))["task"] == "text-classification"


def test_a_job_starts_from_one_adapter_only(
    api: Service, http: httpx.Client, key: str, create: Callable[..., FineTuningJob]
) -> None:
    from_model = serve_adapter(api, key)
    with pytest.raises(BadRequestError, match=BASE_MODEL) as refused:
        create(model=from_model.name, start_from={"file": uploaded(http)})
    assert refused.value.param == "tunesmith.start_from"
