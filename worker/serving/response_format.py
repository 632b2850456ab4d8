"""What form an answer must have: the field `response_format`, and the grammar that it stands for.

A schema is always enforced, `strict` or not. `strict` says besides that the schema keeps OpenAI's
rules for such schemas, so that what is accepted here is accepted there.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from app.domain.errors import InvalidInput
from worker.serving.body import Wire

SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class JsonSchema(Wire):
    name: SchemaName
    description: str | None = None
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Wire):
    """`{"type": "text"}`, `{"type": "json_object"}`, or a `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise InvalidInput(
                "'response_format.json_schema' belongs to the type 'json_schema', which needs it",
                param="response_format.json_schema",
            )
        if self.json_schema is not None and self.json_schema.strict:
            refuse_unless_strict(self.json_schema.definition, "response_format.json_schema.schema")
        return self

    @property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema that an answer follows; None if it is text of any form."""
        if self.type == "text":
            return None
        return _ANY_OBJECT if self.json_schema is None else self.json_schema.definition


def refuse_unless_strict(schema: Mapping[str, Any], param: str) -> None:
    """Refuse a schema that breaks OpenAI's rules for strict ones. Raises: InvalidInput.

    The whole is an object; every object allows the properties that it names and no other, and
    requires all of them.
    """
    if schema.get("type") != "object":
        raise _not_strict(param, "its type must be 'object'")
    for path, part in _objects(schema, param):
        if part.get("additionalProperties") is not False:
            raise _not_strict(param, f"'{path}.additionalProperties' must be false")
        properties, required = part.get("properties", {}), part.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            reason = f"'{path}.properties' must be an object, and '{path}.required' a list"
            raise _not_strict(param, reason)
        missing = [name for name in properties if name not in required]
        if missing:
            names = ", ".join(map(repr, sorted(missing)))
            reason = f"'{path}.required' must name every property; it lacks {names}"
            raise _not_strict(param, reason)


def _not_strict(param: str, reason: str) -> InvalidInput:
    return InvalidInput(f"'{param}': where 'strict' is true, {reason}", param=param)


def _objects(part: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each schema of an object within a schema, with its path."""
    if isinstance(part, list):
        for number, one in enumerate(part):
            yield from _objects(one, f"{path}[{number}]")
    if not isinstance(part, Mapping):
        return
    if part.get("type") == "object" or "properties" in part:
        yield path, part
    for name, inner in part.items():
        if name in ("properties", "$defs", "definitions") and isinstance(inner, Mapping):
            for key, one in inner.items():
                yield from _objects(one, f"{path}.{name}.{key}")
        elif name in ("items", "anyOf", "allOf", "oneOf", "prefixItems"):
            yield from _objects(inner, f"{path}.{name}")
