"""Templates of graders: `{{item.answer}}`, `{{sample.output_json.steps[0].text}}`.

Variables are looked up and nothing is evaluated: what a value holds is never read as a template.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.graders.grading import GradingFailed, Sample

MAX_VARIABLES = 64
MAX_STEPS = 16

_OPEN, _CLOSE = "{{", "}}"
_NAME = r"[^\s.\[\]{}\"']+"
_INDEX = r"\[[0-9]{1,6}\]"
_PATH = re.compile(rf"(item|sample)((?:\.{_NAME}|{_INDEX})+)")
_STEP = re.compile(rf"\.({_NAME})|\[([0-9]+)\]")
_SAMPLE_VARIABLES = ("output_text", "output_json")


@dataclass(frozen=True, slots=True)
class Variable:
    """One `{{…}}`: a namespace, and the keys and positions that lead from there to a value."""

    text: str
    namespace: str
    steps: tuple[str | int, ...]

    def value(self, sample: Sample) -> Any:
        """Return what it stands for.

        Raises:
            GradingFailed: nothing is there, or the sample is not the JSON that it must be.
        """
        if self.namespace == "item":
            return self._follow(sample.item, self.steps)
        if self.steps[0] == "output_text":
            return sample.output_text
        return self._follow(sample.output_json, self.steps[1:])

    def _follow(self, value: Any, steps: tuple[str | int, ...]) -> Any:
        for step in steps:
            is_there = (
                isinstance(value, list) and step < len(value)
                if isinstance(step, int)
                else isinstance(value, Mapping) and step in value
            )
            if not is_there:
                raise GradingFailed("invalid_variable_error", f"no value for {self.text}")
            value = value[step]
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and variables in turn."""

    parts: tuple[str | Variable, ...]

    def render(self, sample: Sample) -> str:
        """Put in the values; what is not text is written as JSON.

        Raises:
            GradingFailed: a variable has no value; the message names it.
        """
        return "".join(
            part if isinstance(part, str) else _written(part, part.value(sample))
            for part in self.parts
        )


def parse_template(text: str, where: str) -> Template:
    """Read a template. Raises: InvalidInput, with `where` as its param, naming the variable."""
    parts: list[str | Variable] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        end = text.find(_CLOSE, start)
        if end < 0:
            raise _invalid(where, "a '{{' is never closed; expected '{{item.<name>}}'")
        parts += (text[position:start], _variable(text[start + 2 : end], where))
        position = end + 2
        if len(parts) > 2 * MAX_VARIABLES:
            raise _invalid(where, f"more than {MAX_VARIABLES} variables")
    return Template((*parts, text[position:]))


def _variable(inside: str, where: str) -> Variable:
    path = inside.strip()
    shown = f"{{{{{path[:80]}}}}}"
    matched = _PATH.fullmatch(path)
    if matched is None:
        raise _invalid(
            where,
            f"unknown variable {shown}; expected {{{{item.<name>}}}}, "
            "{{sample.output_text}} or {{sample.output_json}}",
        )
    namespace, rest = matched.groups()
    steps = tuple(
        key if key else int(position)
        for key, position in (found.groups() for found in _STEP.finditer(rest))
    )
    if len(steps) > MAX_STEPS:
        raise _invalid(where, f"{shown} goes deeper than {MAX_STEPS} levels")
    if namespace == "sample" and (
        steps[0] not in _SAMPLE_VARIABLES or (steps[0] == "output_text" and len(steps) > 1)
    ):
        raise _invalid(
            where,
            f"unknown variable {shown}; a sample has output_text, and output_json with what is in "
            "it",
        )
    return Variable(shown, namespace, steps)


def _written(variable: Variable, value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise GradingFailed(
            "invalid_variable_error", f"the value of {variable.text} is nested too deep"
        ) from None


def _invalid(where: str, what: str) -> InvalidInput:
    return InvalidInput(f"Invalid {where!r}: {what}.", param=where)
