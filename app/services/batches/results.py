"""Lines of the output and of the error file, in OpenAI's shape, and chunks of them in storage."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more answers."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one line.

    Attributes:
        number: of the line in the input.
        is_error: whether it goes into the error file.
        text: the line to write, without its end.
    """

    number: int
    is_error: bool
    text: bytes
    usage: Usage = Usage()


def answered(number: int, custom_id: str, body: Mapping[str, Any]) -> Result:
    """Return the result of a line that was answered."""
    return Result(number, False, _line(custom_id, _response(200, body)), _usage(body))


def refused(number: int, custom_id: str, status: int, body: Mapping[str, Any]) -> Result:
    """Return the result of a line whose answer is an error."""
    return Result(number, True, _line(custom_id, _response(status, body)))


def unanswered(number: int, custom_id: str, code: str, message: str) -> Result:
    """Return the result of a line that was never answered."""
    error = {"code": code, "message": message}
    return Result(number, True, _line(custom_id, None, error))


def pack(results: Iterable[Result]) -> bytes:
    """Return results as one chunk: a line for each, headed by its number and whether it failed."""
    return b"".join(b"%d %d %s\n" % (one.number, one.is_error, one.text) for one in results)


def unpack(chunk: bytes) -> dict[int, Result]:
    """Return the results in a chunk, by number; without their usage, which was counted."""
    results = {}
    for line in chunk.splitlines():
        number, is_error, text = line.split(b" ", 2)
        results[int(number)] = Result(int(number), is_error == b"1", text)
    return results


def _line(
    custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None = None
) -> bytes:
    whole = {
        "id": new_id("batch_req_"),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    # JSON of ASCII alone: no character in it can be taken for the end of a line.
    return json.dumps(whole).encode()


def _response(status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": new_id("req_"), "body": body}


def _usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage that an answer tells, whichever words its endpoint has for it."""
    told = body.get("usage") or {}
    return Usage(
        input_tokens=_count(told, "prompt_tokens") or _count(told, "input_tokens"),
        cached_tokens=_detail(
            told, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"
        ),
        output_tokens=_count(told, "completion_tokens") or _count(told, "output_tokens"),
        reasoning_tokens=_detail(
            told, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"
        ),
    )


def _detail(told: Mapping[str, Any], names: Iterable[str], field: str) -> int:
    return next((_count(told[name], field) for name in names if told.get(name)), 0)


def _count(told: Mapping[str, Any], field: str) -> int:
    return int(told.get(field) or 0)
