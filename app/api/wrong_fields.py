"""What is wrong with a request, in a sentence: the field at fault, and what was expected there."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.api.known_fields import known_fields, told_fields


def explain_validation(
    found: Sequence[Mapping[str, Any]], body: Any, expected: Any = None, at: Sequence[str] = ()
) -> tuple[str, str | None, str | None]:
    """Turn pydantic's errors into one sentence, the field at fault, and a code.

    Only the first field is told about; all the alternatives that it could have been are.

    Args:
        expected: type of the body, whose fields are told where one is unknown; or of the part of
            it that is found below `at`.
    """
    if found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return f"The body is not valid JSON: {reason}.", None, "invalid_json"
    if tuple(found[0]["loc"]) == ("body",) and found[0]["type"] not in ("missing", "value_error"):
        message = "Expected a JSON object as the body, sent as application/json."
        return message, "body", "invalid_value"
    # An unknown field is the likeliest reason for whatever else is wrong with its neighbours.
    first = next((error for error in found if error["type"] == "extra_forbidden"), None)
    if first is None:
        found = _of_the_item(found, body)
        first = found[0]
    path = _path(first, body)
    same = [error for error in found if _path(error, body) == path]
    if first["type"] == "extra_forbidden":
        location = tuple(first["loc"])
        inside = location[1 + len(at) :] if location[:1] == ("body",) else ()
        if len(inside) == 1 and inside[0] in getattr(expected, "unsupported", ()):
            return f"{path!r} is not supported here.", path, "unsupported_parameter"
        return _explain_unknown(inside, path, expected), path, "unknown_field"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        path = f"{path}.{context['discriminator'].strip(chr(39))}"
        expected, tag = context["expected_tags"], context["tag"]
        return f"Invalid {path!r}: expected {expected}, found {_shown(tag)}.", path, "invalid_value"
    if first["type"] == "union_tag_not_found":
        path = f"{path}.{first['ctx']['discriminator'].strip(chr(39))}"
        return f"Missing required field {path!r}.", path, "missing_required_field"
    if all(error["type"] == "missing" for error in same):
        return f"Missing required field {path!r}.", path, "missing_required_field"
    expected = " or ".join(dict.fromkeys(_expectation(error["msg"]) for error in same))
    return (
        f"Invalid {path!r}: expected {expected}, found {_shown(first.get('input'))}.",
        path,
        "invalid_value",
    )


def _of_the_item(found: Sequence[Mapping[str, Any]], body: Any) -> Sequence[Mapping[str, Any]]:
    """Return the errors of the item at fault, where a list is none of the lists it could be.

    That it is no text, say, is true but no help. The alternatives that were followed the furthest
    are what was meant.
    """
    first = found[0]
    if not isinstance(first.get("input"), list):
        return found
    path, depth = _path(first, body), len(first["loc"]) - 1
    # The first error of each alternative counts: its items before that one are good.
    alternatives: dict[Any, Mapping[str, Any]] = {}
    for error in found:
        if f"{_path(error, body)}[".startswith(f"{path}[") and len(error["loc"]) > depth:
            alternatives.setdefault(error["loc"][depth], error)
    places = {name: _numbers(error["loc"][depth:]) for name, error in alternatives.items()}
    furthest = max(places.values())
    wrong_length = any(
        error["type"] in _WRONG_LENGTHS and not places[name] for name, error in alternatives.items()
    )
    if wrong_length or not furthest:
        return found
    return [error for name, error in alternatives.items() if places[name] == furthest]


def _numbers(location: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))


def _explain_unknown(location: Sequence[int | str], path: str, expected: Any) -> str:
    known = known_fields(expected, location) if location else []
    if not known:
        return f"Unknown field {path!r}: nothing by this name is supported."
    return f"Unknown field {path!r}: known here are {told_fields(known, str(location[-1]))}."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(error: Mapping[str, Any], body: Any) -> str:
    """Return the dotted path of a field, without the union members that pydantic names in it."""
    location = list(error["loc"])
    if location and location[0] in ("body", "query", "path", "header"):
        is_body = location.pop(0) == "body"
        if not is_body:
            return ".".join(str(part) for part in location)
    parts: list[str] = []
    value, around = body, None
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(value, Mapping) and part in value:
            value, around = value[part], value
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            parts[-1:] = [f"{parts[-1]}[{part}]"] if parts else [f"[{part}]"]
            continue
        elif not (is_last and error["type"] in ("missing", "extra_forbidden")):
            continue
        elif error["type"] == "extra_forbidden" and isinstance(around, Mapping) and part in around:
            # What was taken for a field is a member of a union that is called the same.
            parts.pop()
        parts.append(str(part)[:64])
    return ".".join(parts) or "body"


def _expectation(message: str) -> str:
    if message.startswith("Value error, Expected UploadFile"):
        return "a file"
    for start, instead in _EXPECTATIONS.items():
        if message.startswith(start):
            message = instead + message.removeprefix(start)
    return message[:1].lower() + message[1:]


# Of a list that would else be right.
_WRONG_LENGTHS = ("too_short", "too_long")

# How pydantic begins its messages, and how a sentence with "expected" goes on instead.
_EXPECTATIONS = {
    "Input should be ": "",
    "Value error, ": "",
    "String should ": "a string to ",
    "List should ": "a list to ",
    "Dictionary should ": "an object to ",
}
