"""What the client knows and we lack may be null: wrappers of it write every field."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from openai.resources import Batches, Completions, Embeddings
from openai.resources.chat import Completions as ChatCompletions
from openai.resources.fine_tuning import Jobs
from openai.resources.responses import Responses
from pydantic import ValidationError

from app.api.schemas.batches import CreateBatchRequest
from app.api.schemas.common import PartialRequest, Request
from app.api.schemas.inference import CreateChatCompletionRequest, CreateCompletionRequest
from app.api.schemas.job_requests import CreateFineTuningJobRequest
from app.api.schemas.predictions import CreateEmbeddingRequest
from app.api.schemas.response_requests import CreateResponseRequest, ResponseText

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
BATCH = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}

# Of the client's methods, not of the wire.
OPTIONS = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}

PARTIAL: list[tuple[type[PartialRequest], dict[str, Any]]] = [
    (CreateChatCompletionRequest, CHAT),
    (CreateCompletionRequest, {"model": "m", "prompt": "a"}),
    (CreateResponseRequest, {"model": "m", "input": "a"}),
    (CreateFineTuningJobRequest, {"model": "m", "training_file": "file-1"}),
    (ResponseText, {}),
]


@pytest.mark.parametrize(
    ("create", "kind", "body"),
    [
        (ChatCompletions.create, *PARTIAL[0]),
        (Completions.create, *PARTIAL[1]),
        (Responses.create, *PARTIAL[2]),
        (Jobs.create, *PARTIAL[3]),
        (Embeddings.create, CreateEmbeddingRequest, {"model": "m", "input": "a"}),
        (Batches.create, CreateBatchRequest, BATCH),
    ],
    ids=["chat", "completion", "response", "job", "embedding", "batch"],
)
def test_every_field_of_the_client_may_be_null(
    create: Callable[..., Any], kind: type[Request], body: dict[str, Any]
) -> None:
    names = set(inspect.signature(create).parameters) - OPTIONS
    nulls = dict.fromkeys(names - set(body))
    assert kind.model_validate(nulls | body).model_dump(exclude_none=True) == kind.model_validate(
        body
    ).model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("kind", "body", "name"),
    [(kind, body, name) for kind, body in PARTIAL for name in sorted(kind.unsupported)],
)
def test_one_that_says_something_is_refused(
    kind: type[Request], body: dict[str, Any], name: str
) -> None:
    for value in (False, "", [], {}):
        with pytest.raises(ValidationError) as refused:
            kind.model_validate(body | {name: value})
        assert [error["loc"] for error in refused.value.errors()] == [(name,)]


def test_a_part_of_a_request_may_hold_nulls() -> None:
    assert ResponseText.model_validate({"format": None, "verbosity": None}) == ResponseText()


def test_a_null_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        CreateChatCompletionRequest.model_validate(CHAT | {"modle": None})
