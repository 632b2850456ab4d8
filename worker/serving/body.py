"""Checking a request's body field by field, and naming the field at fault.

A field that would change the answer and that this engine does not support is refused by name.
`null` means absent, as in OpenAI's interface.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from app.domain.errors import InvalidInput
from app.domain.unsupported_fields import CHAT_FIELDS, COMPLETION_FIELDS

_UNSUPPORTED = CHAT_FIELDS | COMPLETION_FIELDS


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


_Body = TypeVar("_Body", bound=Wire)


def parse(kind: type[_Body], body: bytes) -> _Body:
    """Check a request's body.

    Raises:
        InvalidInput: naming the field at fault.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explained(kind, error) from None


def _explained(kind: type[Wire], error: ValidationError) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False)[0]
    where = first["loc"]
    if not where:
        return InvalidInput(f"the request is not valid: {first['msg']}")
    name = str(where[0])
    if first["type"] == "extra_forbidden" and len(where) == 1:
        if name in _UNSUPPORTED:
            message = f"'{name}' is not supported by this engine"
            return InvalidInput(message, param=name, code="unsupported_parameter")
        return InvalidInput(f"unknown field '{name}'", param=name, code="unknown_parameter")
    path = name + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where[1:])
    if first["type"] == "missing":
        return InvalidInput(f"'{path}' is required", param=path, code="missing_parameter")
    field = kind.model_fields.get(name)
    if field is not None and field.description is not None:
        return InvalidInput(f"'{name}' must be {field.description}", param=name)
    message = first["msg"]
    return InvalidInput(f"'{path}': {message[:1].lower()}{message[1:]}", param=path)
