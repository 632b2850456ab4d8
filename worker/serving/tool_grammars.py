"""Grammars of answers that call functions, in llguidance's variant of Lark."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.generation.grammar import with_white_space
from worker.serving.tool_formats import ToolFormat

# A text of any form. Where a text begins calls, the rule that says so goes before this one.
_ANY_TEXT = r"ANY: /(.|\n)*/"
# Where a brace alone begins a call.
_TEXT_WITHOUT_CALL = r"ANY: /[^{\s](.|\n)*/"


@dataclass(frozen=True, slots=True)
class CallableFunction:
    """A function that may be called.

    Attributes:
        parameters: the JSON Schema of its arguments.
        is_strict: whether arguments follow all of the schema, or what of it can be enforced.
        param: the field of the request that holds the schema.
    """

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool
    param: str


@dataclass(frozen=True, slots=True)
class CallRules:
    """The rules of answers in one format.

    Attributes:
        special: the ids of the special tokens that the format's texts can hold.
        is_parallel: whether an answer may have several calls.
    """

    form: ToolFormat
    functions: Sequence[CallableFunction]
    special: Mapping[str, int]
    is_parallel: bool

    def calls(self) -> str:
        """Return the grammar of an answer that is calls and nothing else."""
        return self._grammar(["start: calls"])

    def calls_or_json(self, schema: Mapping[str, Any]) -> str:
        """Return the grammar of an answer that is calls, or JSON that follows a schema."""
        told = json.dumps(with_white_space(schema))
        return self._grammar(["start: calls | answer", f"answer: %json {told}"])

    def calls_or_text(self) -> str:
        """Return the grammar of an answer that is text, and calls wherever their sign comes."""
        if not self.form.begin:
            return self._grammar(["start: calls | ANY", _TEXT_WITHOUT_CALL])
        sign = self.form.begin.split()[0]
        rest = self.form.begin.removeprefix(sign)
        is_lazy = "" if sign in self.special else "[lazy]"
        run = f"run: head {self._literal(rest)} {self._several()} {self._literal(self.form.end)}"
        return self._grammar(
            [
                "start: run* ANY" if self.is_parallel else "start: run | ANY",
                f"head{is_lazy}: ANY {self._literal(sign)}",
                run,
                _ANY_TEXT,
            ]
        )

    def _grammar(self, rules: list[str]) -> str:
        begin, end = self._literal(self.form.begin), self._literal(self.form.end)
        numbers = range(len(self.functions))
        rules.append(f"calls: {begin} {self._several()} {end}")
        rules.append("call: " + " | ".join(f"call_{number}" for number in numbers))
        for number, function in enumerate(self.functions):
            name, field = json.dumps(function.name), json.dumps(self.form.arguments)
            head = json.dumps(f'{{"name": {name}, {field}: ')
            schema = with_white_space(function.parameters, is_lenient=not function.is_strict)
            rules.append(f'call_{number}: {head} arguments_{number} "}}"')
            rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
        return "\n".join(rules)

    def _several(self) -> str:
        return f"call ({self._literal(self.form.between)} call)*" if self.is_parallel else "call"

    def _literal(self, text: str) -> str:
        """Return a fixed text as part of a rule, its special tokens by their ids."""
        if not text:
            return ""
        signs = [token for token in self.special if token in text]
        parts = re.split("(" + "|".join(map(re.escape, signs)) + ")", text) if signs else [text]
        return " ".join(
            f"<[{self.special[part]}]>" if part in self.special else json.dumps(part)
            for part in parts
            if part
        )
