"""What the operator does beside the API, and what its users then see."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import BadRequestError, OpenAI

from app.base_models import load_catalogue
from app.domain.job_state import JobStatus
from tests.support.factories import BASE_MODEL, add_job_in, dataset
from tests.support.service import Service, serve_adapter


@pytest.fixture
def catalogue(api: Service) -> Iterator[Path]:
    """The operator's catalogue, which is not there yet."""
    path = api.settings.catalogue_path
    assert not path.exists()
    yield path
    path.unlink(missing_ok=True)


def test_the_first_key_was_shown_at_the_first_start(api: Service) -> None:
    shown = re.findall(r"sk-ts-\S+", (api.data_dir / "output.log").read_text())
    assert len(shown) == 1
    with api.http(shown[0]) as http:
        assert http.get("/v1/models").status_code == 200


def test_a_model_that_is_added_can_be_named_at_once(
    api: Service, client: OpenAI, catalogue: Path, base_model_dir: Path
) -> None:
    arguments = ["another/model", f"dir:{base_model_dir}", "--context-length", "128"]
    before = [model.id for model in client.models.list()]
    assert BASE_MODEL in before
    arguments += ["--task", "text-generation", "--task", "feature-extraction"]
    api.tunesmith("models", "add", *arguments, "--licence", "apache-2.0", "--no-fetch")
    added = load_catalogue(catalogue).get("another/model")
    assert added.tasks == ("text-generation", "feature-extraction")
    assert [model.id for model in client.models.list()] == [*before, "another/model"]
    # Its slash arrives encoded.
    assert client.models.retrieve("another/model").id == "another/model"
    file = client.files.create(file=("train.jsonl", dataset()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="another/model", training_file=file.id)
    assert job.model == "another/model"
    assert "another/model" in api.tunesmith("models", "list")


def test_a_broken_catalogue_is_no_mistake_of_a_caller(http: httpx.Client, catalogue: Path) -> None:
    catalogue.write_text("[[models]]\nid = 3\n")
    answer = http.get("/v1/models")
    assert answer.status_code >= 500
    assert str(catalogue) not in answer.text


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_model_that_a_job_starts_from_is_not_deleted(
    api: Service, key: str, client: OpenAI, status: JobStatus
) -> None:
    adapter = serve_adapter(api, key)
    with api.database() as database, database.write() as connection:
        add_job_in(
            connection,
            adapter.project_id,
            status,
            start_from={"model": adapter.name, "storage_prefix": adapter.storage_prefix},
        )
    with pytest.raises(BadRequestError) as refused:
        client.models.delete(adapter.name)
    assert (refused.value.code, refused.value.param) == ("model_in_use", "model")
    assert client.models.retrieve(adapter.name).id == adapter.name
