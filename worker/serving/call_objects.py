"""Reading the JSON object that a call of a function is, as it is written."""

import json
import re
from typing import Any

# What an object begins with whose arguments can be passed on as they come.
_HEAD = r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"%s"\s*:\s*'


class CallObjectReader:
    """Reads one JSON object, `{"name": …, "arguments": {…}}`, character by character.

    Attributes:
        name: of the function, once it is certain.
        is_refused: the object is complete and no call.
    """

    def __init__(self, field: str) -> None:
        self.name: str | None = None
        self.is_complete = self.is_refused = False
        self._field = field
        self._head = re.compile(_HEAD % re.escape(field), re.DOTALL)
        self._text: list[str] = []
        self._arguments: list[str] = []
        self._depth = 0
        self._is_in_string = self._is_escaped = self._is_in_arguments = False

    def push(self, text: str) -> int:
        """Take in text up to the end of the object; return how much of it."""
        for number, character in enumerate(text):
            self._text.append(character)
            if self._is_in_string:
                self._read_in_string(character)
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
                self._look_for_head(character)
            if self._is_in_arguments:
                self._arguments.append(character)
            if not self._is_in_string and character in "}]":
                self._depth -= 1
                self._is_in_arguments = self._is_in_arguments and self._depth > 1
                if self._depth == 0:
                    self._end()
                    return number + 1
        return len(text)

    def take(self) -> str:
        """Return what of the arguments has come since the last time."""
        taken, self._arguments = "".join(self._arguments), []
        return taken

    def _read_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False

    def _look_for_head(self, character: str) -> None:
        if self.name is None and self._depth == 2 and character == "{":
            head = self._head.fullmatch("".join(self._text[:-1]))
            if head is not None:
                self.name = json.loads(head[1], strict=False)
                self._is_in_arguments = True

    def _end(self) -> None:
        """Take an object whose fields are in another order as a whole."""
        self.is_complete = True
        if self.name is not None:
            return
        try:
            call: Any = json.loads("".join(self._text), strict=False)
        except (ValueError, RecursionError):
            call = None
        arguments = call.get(self._field) if isinstance(call, dict) else None
        if not isinstance(arguments, str | dict) or not isinstance(call.get("name"), str):
            self.is_refused = True
            return
        self.name = call["name"]
        self._arguments = [arguments if isinstance(arguments, str) else json.dumps(arguments)]
