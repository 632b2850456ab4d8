"""What every route says when something is wrong: one envelope, and an id to quote."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from app.main import create_app
from app.settings import load_settings
from tests.support.factories import BASE_MODEL
from tests.support.service import Service
from tests.support.wire import error_of

JSON_ROUTES = [
    "/v1/fine_tuning/jobs",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/predictions",
    "/v1/embeddings",
]


def routes() -> list[tuple[str, str]]:
    """Return every documented route as (method, path), with something for each parameter."""
    paths = create_app(load_settings({})).openapi()["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in paths.items()
        for method in operations
    ]


PROTECTED = [(method, path) for method, path in routes() if path.startswith("/v1")]
OPEN = [(method, path) for method, path in routes() if not path.startswith("/v1")]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    ("header", "told"),
    [
        (None, "did not provide an API key"),
        ("", "did not provide an API key"),
        ("Basic dXNlcjpwYXNz", "did not provide an API key"),
        ("Bearer", "did not provide an API key"),
        ("Bearer sk-wrong", "Incorrect API key"),
        ("Bearer sk-ts-unknown-secret", "Incorrect API key"),
    ],
    ids=["none", "empty", "basic", "no_key", "no_key_of_ours", "unknown_key"],
)
def test_without_a_key_every_route_is_closed(
    anonymous: httpx.Client, method: str, path: str, header: str | None, told: str
) -> None:
    headers = {"authorization": header} if header is not None else {}
    error = error_of(anonymous.request(method, path, headers=headers, content=b"{"), 401)
    assert told in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_health_needs_no_key(anonymous: httpx.Client, method: str, path: str) -> None:
    answer = anonymous.request(method, path)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].startswith("req_")


def test_readiness_tells_what_is_there(anonymous: httpx.Client) -> None:
    assert anonymous.get("/readyz").json() == {
        "status": "ready",
        "database": True,
        "storage": True,
        "engine": True,
    }


def test_the_client_meets_a_wrong_key_as_its_own_error(api: Service) -> None:
    with api.client("sk-wrong") as client, pytest.raises(AuthenticationError) as refused:
        client.models.list()
    assert refused.value.request_id is not None


def test_a_revoked_key_is_refused_from_then_on(api: Service) -> None:
    key = api.tunesmith("keys", "create", "--name", "short-lived", "--project", "p").strip()
    with api.client(key) as client:
        assert client.models.list().data
        key_id = key.split("-")[2]
        api.tunesmith("keys", "revoke", key_id)
        with pytest.raises(AuthenticationError):
            client.models.list()
    (line,) = [one for one in api.tunesmith("keys", "list").splitlines() if key_id in one]
    assert "revoked" in line
    assert "short-lived" in line
    assert key not in line


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/nothing", "/v1/files/a/b", "/v2/files"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_url_is_told(http: httpx.Client, path: str, method: str) -> None:
    error = error_of(http.request(method, path), 404)
    assert path in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/files"), ("DELETE", "/v1/fine_tuning/jobs"), ("GET", "/v1/chat/completions")],
)
def test_a_wrong_method_is_told(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert method in error_of(answer, 405)["message"]
    assert answer.headers["allow"]


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"a": NaN}', b'{"model": "\\ud800"}'],
    ids=["none", "broken", "array", "text", "null", "no_utf_8", "nan", "half_a_character"],
)
def test_a_body_that_is_no_request_is_told(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_body_that_is_nested_without_end_is_told(http: httpx.Client, path: str) -> None:
    body = b'{"metadata": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    error_of(answer, 400)


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_body_of_another_type_is_told(http: httpx.Client, path: str) -> None:
    answer = http.post(path, data={"model": BASE_MODEL})
    assert "JSON" in error_of(answer, 400)["message"]


@pytest.mark.parametrize("path", [path for path in JSON_ROUTES if path != "/v1/predictions"])
def test_a_body_that_is_too_large_is_told(http: httpx.Client, path: str) -> None:
    body = json.dumps({"model": "x" * (9 << 20)}).encode()
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert error_of(answer, 413)["code"] == "too_large"


NUL = "\x00"
HELLO = [{"role": "user", "content": "hello"}]

WITH_NUL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "file": ("GET", "/v1/files/file-%00", {}),
    "content": ("GET", "/v1/files/file-%00/content", {}),
    "deleted_file": ("DELETE", "/v1/files/file-%00", {}),
    "after": ("GET", "/v1/files", {"params": {"after": NUL}}),
    "purpose": ("GET", "/v1/files", {"params": {"purpose": NUL}}),
    "job": ("GET", "/v1/fine_tuning/jobs/ftjob-%00", {}),
    "cancelled_job": ("POST", "/v1/fine_tuning/jobs/ftjob-%00/cancel", {}),
    "events": ("GET", "/v1/fine_tuning/jobs/ftjob-%00/events", {}),
    "metadata_value": ("GET", "/v1/fine_tuning/jobs", {"params": {"metadata[a]": NUL}}),
    "metadata_key": ("GET", "/v1/fine_tuning/jobs", {"params": {f"metadata[{NUL}]": "a"}}),
    "model": ("GET", "/v1/models/ft:%00", {}),
    "deleted_model": ("DELETE", "/v1/models/ft:%00", {}),
    "training_file": (
        "POST",
        "/v1/fine_tuning/jobs",
        {"json": {"model": BASE_MODEL, "training_file": NUL}},
    ),
    "chat_model": (
        "POST",
        "/v1/chat/completions",
        {"json": {"model": f"ft:{NUL}", "messages": HELLO}},
    ),
}


@pytest.mark.parametrize(("method", "path", "more"), WITH_NUL.values(), ids=WITH_NUL)
def test_a_nul_character_is_a_mistake_like_any_other(
    http: httpx.Client, method: str, path: str, more: dict[str, Any]
) -> None:
    answer = http.request(method, path, **more)
    # An empty list is an answer too: nothing is called so.
    assert answer.status_code in (200, 400, 404), answer.text


@pytest.mark.parametrize("metadata", [{"a": NUL}, {NUL: "a"}], ids=["value", "key"])
def test_metadata_with_a_nul_character_is_kept_or_refused(
    client: OpenAI, http: httpx.Client, metadata: dict[str, str]
) -> None:
    line = b'{"prompt": "a", "completion": "b"}\n'
    file = client.files.create(file=("train.jsonl", line), purpose="fine-tune")
    body = {"model": BASE_MODEL, "training_file": file.id, "metadata": metadata}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    if answer.status_code == 200:
        assert answer.json()["metadata"] == metadata
    else:
        assert (error_of(answer, 400)["param"] or "").startswith("metadata")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs", "/v1/models"])
def test_an_unknown_query_is_refused_by_name(http: httpx.Client, path: str) -> None:
    error = error_of(http.get(path, params={"sort": "up"}), 400)
    assert (error["param"], error["code"]) == ("sort", "unknown_field")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/readyz", "/v1/models", "/v1/none"])
def test_every_answer_has_an_id_of_its_own(http: httpx.Client, path: str) -> None:
    headers = {"x-request-id": "chosen-by-the-caller"}
    ids = {http.get(path, headers=headers).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(one.startswith("req_") for one in ids)


def test_an_unexpected_failure_is_told_without_its_details() -> None:
    app = create_app(load_settings({}))

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("a secret of the house")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/broken")

    answer = asyncio.run(ask())
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
