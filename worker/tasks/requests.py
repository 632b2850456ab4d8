"""What requests for predictions hold, checked with the name of the field at fault."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from app.domain.errors import InvalidInput

T = TypeVar("T")


def checked(kind: type[T], parameters: Mapping[str, Any], field: str = "parameters") -> T:
    """Return an object of a request. Raises: InvalidInput.

    Args:
        field: of the request, that holds it.
    """
    try:
        return msgspec.convert(dict(parameters), kind)
    except msgspec.ValidationError as error:
        what, _, path = (
            str(error).replace("`", "'").replace(">= ", "at least ").partition(" - at '$")
        )
        param = field + path.rstrip("'")
        raise InvalidInput(f"'{param}': {what[:1].lower()}{what[1:]}", param=param) from None


def text_of(value: Any, expected: str = "expected a text", field: str = "inputs") -> str:
    """Return a text that holds something: of nothing, nothing can be predicted.

    Args:
        expected: the message for what is no text.

    Raises:
        InvalidInput: naming the field.
    """
    if not isinstance(value, str):
        raise InvalidInput(expected, param=field)
    if not value.strip():
        raise InvalidInput("the text is empty", param=field)
    return value


def text_and_pair(value: Any) -> tuple[str, str | None]:
    """Return the text of an input, and the second one of a pair. Raises: InvalidInput."""
    if isinstance(value, str):
        return text_of(value), None
    if isinstance(value, Mapping) and set(value) <= {"text", "text_pair"} and "text" in value:
        text, pair = value["text"], value.get("text_pair")
        if isinstance(text, str) and (pair is None or isinstance(pair, str)):
            for field, part in (("text", text), ("text_pair", pair)):
                if part is not None:
                    text_of(part, field=f"inputs.{field}")
            return text, pair
    raise InvalidInput(
        "expected a text, or an object with the texts 'text' and 'text_pair'", param="inputs"
    )
