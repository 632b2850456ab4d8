"""Inputs of batches, and what came of them."""

import json
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.support.factories import BASE_MODEL
from tests.support.polling import eventually

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def chat_line(custom_id: str, content: str, **fields: Any) -> dict[str, Any]:
    """Return a line of an input that asks the base model."""
    body = {"model": BASE_MODEL, "messages": [{"role": "user", "content": content}], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def as_input(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(client: OpenAI, lines: list[Any] | bytes) -> str:
    """Upload an input, and return the id of its file."""
    content = lines if isinstance(lines, bytes) else as_input(lines)
    return client.files.create(file=("requests.jsonl", content), purpose="batch").id


def create(client: OpenAI, lines: list[Any] | bytes, endpoint: Any = CHAT, **fields: Any) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, lines),
        endpoint=endpoint,
        completion_window="24h",
        **fields,
    )


def wait_until(
    client: OpenAI, batch: Batch, status: set[str], *, within_seconds: float = 30
) -> Batch:
    def look() -> Batch | None:
        seen = client.batches.retrieve(batch.id)
        assert seen.status in status or seen.status not in ENDED, seen
        return seen if seen.status in status else None

    return eventually(
        look, what=f"the batch is {status}", within_seconds=within_seconds, every_seconds=0.05
    )


def content_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of an output or error file; none if there is no file."""
    if file_id is None:
        return []
    return lines_of(client.files.content(file_id).content)


def lines_of(content: bytes) -> list[dict[str, Any]]:
    """Return the lines of a file, each of which must be whole."""
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def results_of(client: OpenAI, batch: Batch) -> list[dict[str, Any]]:
    """Return the lines of both files."""
    return content_of(client, batch.output_file_id) + content_of(client, batch.error_file_id)


def refuse_lost_and_doubled(asked: list[str], results: list[dict[str, Any]]) -> None:
    """Raises: AssertionError, unless every request has exactly one result."""
    found = [one["custom_id"] for one in results]
    lost = set(asked) - set(found)
    doubled = {one for one in found if found.count(one) > 1}
    unknown = set(found) - set(asked)
    assert not lost, f"lost: {sorted(lost)}"
    assert not doubled, f"doubled: {sorted(doubled)}"
    assert not unknown, f"never asked: {sorted(unknown)}"
