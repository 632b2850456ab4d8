"""What a finished run has to show beside its weights."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fields that a `finished` message has of a run's report.

    Attributes:
        files: content by name.
        summary: of the report; None where nothing was held out.
        refusal: why the model is not to be published; None if it is.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    refusal: str | None = None

    def as_message(self) -> dict[str, Any]:
        return {
            "results": {name: b64encode(content).decode() for name, content in self.files.items()},
            "report": self.summary,
            "refusal": self.refusal,
        }
