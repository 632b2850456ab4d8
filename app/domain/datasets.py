"""Dataset records: their shapes, and the check that explains what is wrong with which line.

A dataset is UTF-8 JSON lines, one record a line, all of one kind. The fast path decodes each
line straight into a typed struct; only a line that fails is looked at again for a message.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import msgspec

from app.domain.errors import InvalidFile

MAX_RECORD_BYTES = 1 << 20
MAX_NESTING = 32
MAX_MESSAGE_CHARACTERS = 400

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a conversation. `weight` 0 keeps an assistant turn out of the loss."""

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    weight: Literal[0, 1] | None = None


class ChatRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation whose assistant turns are learnt."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt and the completion that is learnt."""

    prompt: str
    completion: str


Record = ChatRecord | CompletionRecord


@dataclass(frozen=True, slots=True)
class RecordKind:
    """One shape of record: how it is recognised, decoded and checked."""

    name: str
    marker: str  # The key that tells this kind from the others.
    example: str
    decoder: msgspec.json.Decoder[Record]


RECORD_KINDS: tuple[RecordKind, ...] = (
    RecordKind(
        "chat",
        "messages",
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        msgspec.json.Decoder(ChatRecord),
    ),
    RecordKind(
        "completion",
        "prompt",
        '{"prompt": "…", "completion": "…"}',
        msgspec.json.Decoder(CompletionRecord),
    ),
)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a valid dataset holds."""

    record_kind: str
    record_count: int


def check_dataset(stream: BinaryIO) -> DatasetSummary:
    """Read a whole dataset and say what it holds.

    Raises:
        InvalidFile: naming the first line at fault, the field and what was expected.
    """
    count, kind = 0, "chat"
    for _, record in read_records(stream):
        if count == 0:
            kind = "chat" if isinstance(record, ChatRecord) else "completion"
        count += 1
    return DatasetSummary(record_kind=kind, record_count=count)


def read_records(stream: BinaryIO) -> Iterator[tuple[int, Record]]:
    """Yield each record with its 1-based line number, in constant memory.

    Raises:
        InvalidFile: naming the first line at fault, or that there is no record at all.
    """
    kind: RecordKind | None = None
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise _invalid(number, f"the line is longer than {MAX_RECORD_BYTES:,} bytes")
        if not line.strip():
            continue
        kind = kind or _kind_of(number, line)
        record = _decode(kind, number, line)
        yield number, record
    if kind is None:
        raise InvalidFile(
            "the file has no records; expected JSON lines such as " + RECORD_KINDS[0].example,
            param="file",
            code="empty_file",
        )


def as_template_messages(record: ChatRecord) -> list[dict[str, Any]]:
    """Return the messages as a chat template takes them: without absent fields and weights."""
    return [
        {
            field: value
            for field in (
                "role",
                "content",
                "name",
                "tool_calls",
                "tool_call_id",
                "function_call",
            )
            if (value := getattr(message, field)) is not None
        }
        for message in record.messages
    ]


def _kind_of(number: int, line: bytes) -> RecordKind:
    if line.startswith(b"\xef\xbb\xbf"):
        raise _invalid(number, "the file starts with a byte-order mark; save it as plain UTF-8")
    record = _parse(number, line)
    if not isinstance(record, dict):
        raise _invalid(number, f"expected a JSON object, found {_type_name(record)}")
    for kind in RECORD_KINDS:
        if kind.marker in record:
            return kind
    markers = " or ".join(repr(kind.marker) for kind in RECORD_KINDS)
    found = ", ".join(repr(str(key)[:40]) for key in list(record)[:8]) or "no keys"
    raise _invalid(number, f"expected an object with the key {markers}, found {found}")


def _decode(kind: RecordKind, number: int, line: bytes) -> Record:
    try:
        record = kind.decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explained(kind, number, line, error) from None
    if isinstance(record, ChatRecord):
        _check_chat(number, record)
    else:
        _check_completion(number, record)
    return record


def _check_chat(number: int, record: ChatRecord) -> None:
    if not record.messages:
        raise _invalid(number, "'messages' is empty; expected at least one assistant message")
    for index, message in enumerate(record.messages):
        where = f"messages[{index}]"
        if isinstance(message.content, list):
            message.content = "".join(part.text for part in message.content)
        has_call = bool(message.tool_calls) or message.function_call is not None
        if message.content is None and not (message.role == "assistant" and has_call):
            raise _invalid(number, f"'{where}.content' is missing; expected text")
        if message.weight is not None and message.role != "assistant":
            raise _invalid(number, f"'{where}.weight' is for assistant messages only")
        if _is_nested_deeper(message.tool_calls, MAX_NESTING) or _is_nested_deeper(
            message.function_call, MAX_NESTING
        ):
            raise _invalid(number, f"'{where}' is nested deeper than {MAX_NESTING} levels")
        if has_call and message.role != "assistant":
            raise _invalid(number, f"'{where}.tool_calls' is for assistant messages only")
    if record.messages[-1].role != "assistant":
        last = record.messages[-1].role
        raise _invalid(
            number,
            f"the last message must be the assistant's answer, found role {last!r}",
        )
    for index, tool in enumerate(record.tools or ()):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise _invalid(
                number,
                f"'tools[{index}]' must be {{'type': 'function', 'function': {{…}}}}",
            )
    if _is_nested_deeper(record.tools, MAX_NESTING):
        raise _invalid(number, f"'tools' is nested deeper than {MAX_NESTING} levels")


def _check_completion(number: int, record: CompletionRecord) -> None:
    if not record.completion:
        raise _invalid(number, "'completion' is empty; expected the text to learn")


def _explained(kind: RecordKind, number: int, line: bytes, error: Exception) -> InvalidFile:
    _parse(number, line)
    text = str(error)
    where = re.search(r" - at `\$\.?(.*?)`$", text)
    if "missing required field" in text and (field := re.search(r"field `(\w+)`", text)):
        path = f"{where[1]}.{field[1]}" if where and where[1] else field[1]
        return _invalid(number, f"'{path}' is missing; expected a record such as {kind.example}")
    if "unknown field" in text and (field := re.search(r"field `(.*?)`", text)):
        place = f" in '{where[1]}'" if where and where[1] else ""
        return _invalid(number, f"unknown key '{field[1][:40]}'{place}")
    what = text[: where.start()] if where else text
    if "enum value" in what and where and where[1].endswith("role"):
        what += "; expected one of " + ", ".join(get_args(Role))
    what = what[:1].lower() + what[1:].replace("`", "")
    return _invalid(number, f"'{where[1]}': {what}" if where and where[1] else what)


def _parse(number: int, line: bytes) -> Any:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(number, f"byte {error.start + 1} is not valid UTF-8") from None
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        raise _invalid(number, f"nested deeper than {MAX_NESTING} levels") from None
    except msgspec.DecodeError as error:
        hint = ""
        if number == 1 and not line.lstrip().startswith((b"{", b"[", b'"')) and b"," in line:
            hint = " This looks like CSV; fine-tuning takes JSON lines."
        if number == 1 and line.lstrip().startswith(b"["):
            hint = " This looks like one JSON array; put one record on each line instead."
        detail = str(error).removeprefix("JSON is malformed: ")
        raise _invalid(
            number,
            f"not valid JSON: {detail}.{hint} Expected one JSON object a line, such as "
            + RECORD_KINDS[0].example,
        ) from None


def _is_nested_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_nested_deeper(child, levels - 1) for child in children)


def _type_name(value: Any) -> str:
    return {
        list: "an array",
        str: "a string",
        type(None): "null",
        bool: "a boolean",
    }.get(type(value), "a number")


def _invalid(number: int, what: str) -> InvalidFile:
    # The file's own words may be in it, which nobody needs to see whole.
    if len(what) > MAX_MESSAGE_CHARACTERS:
        what = what[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    return InvalidFile(f"line {number}: {what}", param="file", code="invalid_record")
