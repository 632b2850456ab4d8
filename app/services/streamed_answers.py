"""A streamed answer put together again, as far as its words go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Choice:
    text: str = ""
    # Name and arguments of each tool call, by its number.
    calls: dict[int, dict[str, str]] = field(default_factory=dict)


class StreamedAnswer:
    """Takes events one by one, of chat completions, completions and responses."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._response: dict[str, Any] | None = None

    def add(self, told: Mapping[str, Any]) -> None:
        if told.get("type") == "response.completed":
            self._response = told["response"]
        for part in told.get("choices") or ():
            choice = self._choices.setdefault(part.get("index", 0), _Choice())
            delta = part.get("delta") or {}
            choice.text += part.get("text") or delta.get("content") or delta.get("refusal") or ""
            for call in delta.get("tool_calls") or ():
                known = choice.calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
                for name in known:
                    known[name] += (call.get("function") or {}).get(name) or ""

    def whole(self) -> dict[str, Any]:
        """Return the answer in the form that one has which was not streamed."""
        if self._response is not None:
            return self._response
        return {
            "choices": [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": choice.text,
                        "tool_calls": [
                            {"type": "function", "function": call} for call in choice.calls.values()
                        ],
                    },
                }
                for index, choice in sorted(self._choices.items())
            ]
        }
