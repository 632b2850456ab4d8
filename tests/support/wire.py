"""Reading what came over the wire as strictly as OpenAI's client does not."""

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter

T = TypeVar("T", bound=BaseModel)

ENVELOPE = {"message", "type", "param", "code"}

# OpenAI's client gives a default to what its documentation calls required but nullable, so that
# its own types would let these be absent.
_ALWAYS_THERE: Mapping[str, frozenset[str]] = {
    "FineTuningJob": frozenset(
        {"error", "fine_tuned_model", "finished_at", "trained_tokens", "validation_file"}
        | {"estimated_finish", "integrations", "metadata", "method"}
    ),
    "FineTuningJobEvent": frozenset({"data", "type"}),
    "ChatCompletion": frozenset({"usage"}),
    "Completion": frozenset({"usage"}),
}


class Answer(Protocol):
    """An answer as it came, from `client.<…>.with_raw_response` or from httpx."""

    @property
    def content(self) -> bytes: ...

    @property
    def headers(self) -> Any: ...


def strict(answer: Answer, kind: type[T]) -> T:
    """Return the body of a raw answer as a type of the SDK; nothing missing, nothing converted.

    Raises:
        ValidationError: the body is not what the type says.
        AssertionError: a field is missing that the SDK would fill in.
    """
    return strict_object(body_of(answer), kind)


def strict_object(raw: bytes, kind: type[T]) -> T:
    """Return one JSON object as a type of the SDK. Raises as `strict` does."""
    value: T = TypeAdapter(kind).validate_json(raw, strict=True)
    present = json.loads(raw).keys()
    required = {
        field.alias or name for name, field in kind.model_fields.items() if field.is_required()
    }
    missing = (required | _ALWAYS_THERE.get(kind.__name__, frozenset())) - present
    assert not missing, f"{kind.__name__} without {missing}"
    return value


def strict_list(answer: Answer, kind: type[T], *, keys: set[str]) -> list[T]:
    """Return the objects of a list whose own keys are exactly `keys`."""
    body = json.loads(body_of(answer))
    assert body.keys() == {"object", "data"} | keys
    assert body["object"] == "list"
    assert not keys or isinstance(body["has_more"], bool)
    found = [strict_object(json.dumps(one).encode(), kind) for one in body["data"]]
    if "first_id" in keys:
        ids = [one["id"] for one in body["data"]] or [None]
        assert (body["first_id"], body["last_id"]) == (ids[0], ids[-1])
    return found


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error that an answer tells, which must have OpenAI's envelope."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == ENVELOPE
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert answer.headers["x-request-id"].startswith("req_")
    return error


def body_of(answer: Answer) -> bytes:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    return answer.content
