"""Reading the input of a batch, and writing the lines of its files."""

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from app.api.batch_wire import REQUESTS, OpenAIWire
from app.domain.batches import MAX_ERRORS, MAX_LINES
from app.domain.errors import InvalidInput, NotFound
from app.domain.task_routes import PREDICTIONS
from app.services.batches.endpoints import ENDPOINTS
from app.services.batches.reading import (
    BYTES_AT_ONCE,
    LINES_AT_ONCE,
    MAX_LINE_BYTES,
    custom_id_of,
    read_lines,
    take_lines,
)
from app.services.batches.results import Usage, answered, pack, refused, unanswered, unpack
from app.services.batches.validation import Survey
from app.services.batches.wire import Line
from tests.support.batching import CHAT, as_input, chat_line


def nothing() -> None:
    """Neither a name nor a line is refused."""


def any_model(name: str) -> None:
    """No name is refused."""


def numbered(number: int, raw: bytes) -> Line:
    """Take every line for a request, known by its number."""
    return Line(number, str(number), {"model": "m"})


def survey(content: bytes) -> Survey:
    found = Survey(lambda number, raw: OpenAIWire().parse(CHAT, number, raw), any_model)
    found.take(io.BytesIO(content), nothing)
    return found


def test_as_many_lines_as_are_allowed() -> None:
    found = Survey(numbered, any_model)
    found.take(io.BytesIO(b"x\n" * MAX_LINES), nothing)
    assert (found.line_count, found.errors) == (MAX_LINES, [])
    found = Survey(numbered, any_model)
    found.take(io.BytesIO(b"x\n" * (MAX_LINES + 1)), nothing)
    assert [(one.code, one.line) for one in found.errors] == [("too_many_requests", MAX_LINES + 1)]


def test_so_many_mistakes_are_told_and_no_more() -> None:
    found = survey(b"{}\n" * (2 * MAX_ERRORS))
    assert [one.line for one in found.errors] == list(range(1, MAX_ERRORS + 1))


def test_of_long_lines_few_are_read_at_once() -> None:
    """Several batches of media must not fill the memory of a process together."""
    short = iter([(number, b"x") for number in range(LINES_AT_ONCE + 1)])
    assert [len(take_lines(short)) for _ in range(3)] == [LINES_AT_ONCE, 1, 0]
    half = b"x" * (BYTES_AT_ONCE // 2)
    long = iter([(number, half) for number in range(3)] + [(3, 4 * half), (4, half)])
    assert [[number for number, _ in take_lines(long)] for _ in range(4)] == [
        [0, 1],
        [2, 3],
        [4],
        [],
    ]


def test_a_line_without_end_is_refused() -> None:
    found = survey(b"x" * (MAX_LINE_BYTES + 1))
    assert [one.code for one in found.errors] == ["line_too_long"]
    assert "line 1 is longer" in found.errors[0].message


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("temprature", "Unknown field 'body.temprature': known here are temperature, "),
        ("reasoning_effort", "'body.reasoning_effort' is not supported here."),
    ],
)
def test_a_field_that_a_line_may_not_have_is_explained_as_in_a_request(
    field: str, told: str
) -> None:
    line = chat_line("a", "x")
    line["body"][field] = 1
    (error,) = survey(as_input([line])).errors
    assert (error.line, error.param) == (1, f"body.{field}")
    assert error.message.startswith(told)


def test_a_part_that_a_line_may_not_have_is_named_as_in_a_request() -> None:
    body = {"model": "m", "inputs": "a", "parameters": {"top_k": 0}}
    line = {"custom_id": "a", "method": "POST", "url": PREDICTIONS, "body": body}
    with pytest.raises(InvalidInput, match="at least 1") as refused:
        OpenAIWire().parse(PREDICTIONS, 1, as_input([line]))
    assert refused.value.param == "body.parameters.top_k"


def test_each_model_is_looked_up_once() -> None:
    asked = []

    def refuse(name: str) -> None:
        asked.append(name)
        raise NotFound(f"no {name}", param="model", code="model_not_found")

    found = Survey(lambda number, raw: OpenAIWire().parse(CHAT, number, raw), refuse)
    found.take(io.BytesIO(as_input([chat_line(str(n), "x") for n in range(5)])), nothing)
    assert len(asked) == 1
    assert [(one.line, one.param) for one in found.errors] == [
        (number, "body.model") for number in range(1, 6)
    ]


def test_an_input_is_read_line_by_line() -> None:
    line = json.dumps(chat_line("a", "x" * 100_000)).encode() + b"\n"
    lines = 200

    class Long(io.RawIOBase):
        """So many lines, made as they are read."""

        left = lines
        rest = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if not self.rest and self.left:
                self.rest, self.left = line, self.left - 1
            taken, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(taken)] = taken
            return len(taken)

    tracemalloc.start()
    try:
        found = Survey(
            lambda number, raw: Line(number, str(number), {"model": custom_id_of(raw)}), any_model
        )
        found.take(io.BufferedReader(Long()), nothing)  # type: ignore[arg-type]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.line_count, found.model) == (lines, "a")
    assert peak_bytes < lines * len(line) / 10


def test_reading_can_be_broken_off() -> None:
    def break_off() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Survey(numbered, any_model).take(io.BytesIO(b"x\n"), break_off)


def test_blank_lines_count_for_numbers_alone() -> None:
    assert [number for number, _ in read_lines(io.BytesIO(b"\na\r\n \t\nb"))] == [2, 4]


def test_a_file_may_begin_with_a_byte_order_mark() -> None:
    raw = b"\xef\xbb\xbf" + as_input([chat_line("a", "x")])
    assert OpenAIWire().parse(CHAT, 1, raw).custom_id == custom_id_of(raw) == "a"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'"\xff"', "not UTF-8"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (as_input([chat_line("a", "\ud83d")]), "half of a character"),
        (as_input([chat_line("a" * 513, "x")]), "at most 512 characters"),
    ],
    ids=["bytes", "depth", "surrogate", "length"],
)
def test_a_line_that_is_none(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        OpenAIWire().parse(CHAT, 1, raw)


def test_each_endpoint_has_a_type_for_its_requests() -> None:
    assert list(REQUESTS) == list(ENDPOINTS)


def test_what_is_unset_is_not_sent_on() -> None:
    line = OpenAIWire().parse(CHAT, 3, as_input([chat_line("a", "x", stream=False, seed=None)]))
    assert (line.number, line.body) == (3, chat_line("a", "x")["body"])


def test_what_is_not_supported_may_be_null_in_a_line() -> None:
    raw = as_input([chat_line("a", "x", reasoning_effort=None)])
    assert OpenAIWire().parse(CHAT, 1, raw).body == chat_line("a", "x")["body"]


def test_chunks_hold_what_was_put_in() -> None:
    results = [
        answered(3, "a\u2028b", {"text": "line\nbreak\r\u0085"}),
        refused(1, "b", 400, {"error": {"message": "no"}}),
        unanswered(2, "c", "batch_expired", "too late"),
    ]
    found = unpack(pack(results))
    assert {number: (one.is_error, one.text) for number, one in found.items()} == {
        one.number: (one.is_error, one.text) for one in results
    }
    assert json.loads(found[3].text)["response"]["body"] == {"text": "line\nbreak\r\u0085"}
    assert json.loads(found[3].text)["custom_id"] == "a\u2028b"


def usages() -> Iterator[tuple[dict[str, Any], Usage]]:
    chat = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    yield chat, Usage(5, 2, 7, 3)
    yield chat | {"prompt_tokens_details": None, "completion_tokens_details": {}}, Usage(5, 0, 7, 0)
    yield {"prompt_tokens": 5, "total_tokens": 5}, Usage(5)
    yield {"inputs": 2, "input_tokens": 9}, Usage(9)
    response = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    yield response, Usage(5, 2, 7, 3)


@pytest.mark.parametrize(("told", "usage"), list(usages()))
def test_usage_in_the_words_of_each_endpoint(told: dict[str, Any], usage: Usage) -> None:
    assert answered(1, "a", {"usage": told}).usage == usage
    assert answered(1, "a", {}).usage == Usage()
