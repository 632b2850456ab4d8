"""The OpenAPI document: what clients are generated from."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from openapi_python_client.schema import OpenAPI

from app.domain.methods import METHODS
from app.main import create_app
from app.settings import load_settings
from tests.support.factories import BASE_MODEL, dataset
from tests.support.service import REPOSITORY, Service

# Names of the methods of generated clients: to change one breaks whoever uses it.
OPERATIONS = {
    "getHealth",
    "getReadiness",
    "getVersion",
    "createFile",
    "listFiles",
    "retrieveFile",
    "downloadFile",
    "deleteFile",
    "createFineTuningJob",
    "listPaginatedFineTuningJobs",
    "retrieveFineTuningJob",
    "cancelFineTuningJob",
    "pauseFineTuningJob",
    "resumeFineTuningJob",
    "listFineTuningEvents",
    "listFineTuningJobCheckpoints",
    "listModels",
    "retrieveModel",
    "deleteModel",
    "createChatCompletion",
    "createCompletion",
    "createResponse",
    "createPrediction",
    "createEmbedding",
    "createScore",
    "createExplanation",
    "createEnsemble",
    "listEnsembles",
    "retrieveEnsemble",
    "deleteEnsemble",
    "createAlias",
    "listAliases",
    "retrieveAlias",
    "updateAlias",
    "rollBackAlias",
    "listAliasRevisions",
    "deleteAlias",
    "createExport",
    "listExports",
    "retrieveExport",
    "cancelExport",
    "listUsage",
    "createFeedback",
    "listAliasFeedback",
    "retrieveAliasReport",
    "listAliasShadowSamples",
    "createFineTuningSweep",
    "listFineTuningSweeps",
    "retrieveFineTuningSweep",
    "cancelFineTuningSweep",
    "listFineTuningSweepTrials",
    "createBatch",
    "listBatches",
    "retrieveBatch",
    "cancelBatch",
    "runGrader",
    "validateGrader",
}

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    return create_app(load_settings({})).openapi()


@pytest.fixture(scope="module")
def operations(document: Document) -> list[tuple[str, Document]]:
    """Every operation with its path."""
    return [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    ]


def every_object_in(value: Any) -> Iterator[Document]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from every_object_in(one)


def test_the_committed_document_is_up_to_date(document: Document) -> None:
    committed = REPOSITORY / "openapi.json"
    assert json.loads(committed.read_text()) == document, "run `make openapi`"


def test_the_service_hands_out_the_same_document(
    anonymous: httpx.Client, document: Document
) -> None:
    assert anonymous.get("/openapi.json").json() == document


def test_it_is_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    assert OpenAPI.model_validate(document).paths


def test_every_reference_leads_somewhere(document: Document) -> None:
    references = [found["$ref"] for found in every_object_in(document) if "$ref" in found]
    assert references
    for reference in references:
        value: Any = document
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]


def test_operations_keep_their_names(operations: list[tuple[str, Document]]) -> None:
    names = [operation["operationId"] for _, operation in operations]
    assert len(names) == len(set(names))
    assert set(names) == OPERATIONS


def test_every_operation_is_grouped_and_described(operations: list[tuple[str, Document]]) -> None:
    for _, operation in operations:
        assert operation["summary"]
        assert len(operation["tags"]) == 1


def test_every_operation_documents_its_errors(operations: list[tuple[str, Document]]) -> None:
    for path, operation in operations:
        # FastAPI's own 422 is never sent: a mistake in a request is a 400 with OpenAI's envelope.
        has_key = any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ()))
        for status in ("409", "422"):
            assert (status in operation["responses"]) == has_key, operation["operationId"]
        if not path.startswith("/v1"):
            continue
        assert operation["security"]
        assert "401" in operation["responses"]
        for status, response in operation["responses"].items():
            if status[0] in "45":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_every_post_takes_an_idempotency_key(document: Document) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            keys = [
                one
                for one in operation.get("parameters", ())
                if one["name"].lower() == "idempotency-key"
            ]
            assert len(keys) == (1 if method == "post" else 0), (method, path)
            for key in keys:
                assert (key["in"], key["required"]) == ("header", False)
                assert key["description"]


def test_every_parameter_of_a_path_is_declared(operations: list[tuple[str, Document]]) -> None:
    for path, operation in operations:
        in_path = {part.split("}")[0] for part in path.split("{")[1:]}
        declared = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert declared == in_path


WITH_EXAMPLES = ["createFineTuningJob", "createChatCompletion", "createCompletion"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_bodies_have_examples(
    document: Document, operations: list[tuple[str, Document]], name: str
) -> None:
    (operation,) = [one for _, one in operations if one["operationId"] == name]
    content = operation["requestBody"]["content"]["application/json"]
    reference = content["schema"].get("$ref", "").rpartition("/")[2]
    schema = document["components"]["schemas"].get(reference, content["schema"])
    assert content.get("examples") or content["schema"].get("examples") or schema.get("examples")


def test_no_alternative_is_a_constant(document: Document) -> None:
    """`openapi-python-client` makes code of one that cannot run; an `enum` of one is the same."""
    alternatives = [one for found in every_object_in(document) for one in found.get("anyOf", ())]
    assert alternatives
    assert [one for one in alternatives if "const" in one] == []


def test_an_upload_is_a_form_with_a_binary_file(document: Document) -> None:
    content = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert content.keys() == {"multipart/form-data"}
    schema = document["components"]["schemas"]["Body_createFile"]
    assert schema["properties"]["file"]["format"] == "binary"


def test_every_method_of_training_is_in_it(document: Document) -> None:
    kinds = {
        schema["properties"]["type"].get("const")
        for name, schema in document["components"]["schemas"].items()
        if name.endswith("Method")
    }
    assert kinds == set(METHODS)


def test_every_answer_says_what_is_always_there(document: Document) -> None:
    schema = document["components"]["schemas"]["FineTuningJob"]
    assert {"id", "status", "error", "fine_tuned_model", "method"} <= set(schema["required"])


@pytest.fixture(scope="module")
def generated(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A Python client, generated from the document by somebody else's generator."""
    directory = tmp_path_factory.mktemp("generated")
    (directory / "openapi.json").write_text(json.dumps(document))
    # The generator would format its work with ruff, which need not be there.
    (directory / "config.yaml").write_text("post_hooks: []\n")
    arguments = "--path openapi.json --config config.yaml --meta none --fail-on-warning"
    arguments += " --output-path tunesmith_client"
    subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", *arguments.split()],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    sys.path.insert(0, str(directory))
    yield importlib.import_module("tunesmith_client")
    sys.path.remove(str(directory))


def use(operation: str, **arguments: Any) -> Any:
    """Call an operation of the generated client."""
    return importlib.import_module(f"tunesmith_client.api.{operation}").sync(**arguments)


def test_a_generated_client_does_the_main_job(
    api: Service, key: str, generated: ModuleType, tmp_path: Path
) -> None:
    models = importlib.import_module("tunesmith_client.models")
    types = importlib.import_module("tunesmith_client.types")
    content = dataset()
    with generated.AuthenticatedClient(base_url=api.root_url, token=key) as client:
        upload = types.File(payload=content, file_name="train.jsonl")
        file = use(
            "files.create_file",
            client=client,
            body=models.BodyCreateFile(
                file=upload,
                purpose="fine-tune",
                expires_afteranchor="created_at",
                expires_afterseconds=3_600,
            ),
        )
        assert isinstance(file, models.OpenAIFile), file
        downloaded = use("files.download_file", client=client, file_id=file.id)
        assert downloaded.payload.read() == content
        job = use(
            "fine_tuning.create_fine_tuning_job",
            client=client,
            body=models.CreateFineTuningJobRequest(model=BASE_MODEL, training_file=file.id),
        )
        assert isinstance(job, models.FineTuningJob), job
        listed = use("fine_tuning.list_paginated_fine_tuning_jobs", client=client, limit=5)
        assert [one.id for one in listed.data] == [job.id]
        found = use(
            "fine_tuning.retrieve_fine_tuning_job", client=client, fine_tuning_job_id=job.id
        )
        assert found.training_file == file.id
        cancelled = use(
            "fine_tuning.cancel_fine_tuning_job", client=client, fine_tuning_job_id=job.id
        )
        assert cancelled.status == models.JobStatus.CANCELLED
        again = use("fine_tuning.cancel_fine_tuning_job", client=client, fine_tuning_job_id=job.id)
        assert isinstance(again, models.ErrorResponse)
        assert again.error.code == "invalid_job_state"
        answer = use(
            "inference.create_chat_completion",
            client=client,
            body=models.CreateChatCompletionRequest(
                model=BASE_MODEL,
                messages=[models.UserMessage(role="user", content="hello")],
            ),
        )
        assert answer.choices[0].message.content
