"""What batches have to know of the wire, and only the API can tell them."""

from dataclasses import dataclass
from typing import Any, Protocol

from app.domain.errors import DomainError


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch.

    Attributes:
        number: of its line in the input, from 1.
        body: in OpenAI's wire format, checked as the route checks it.
    """

    number: int
    custom_id: str
    body: dict[str, Any]


class Wire(Protocol):
    """Lines of an input in, and answers out."""

    def parse(self, endpoint: str, number: int, raw: bytes) -> Line:
        """Read one line of an input.

        Raises:
            InvalidInput: the line is not valid; `param` names the field from the line's top.
        """

    def refusal(self, error: DomainError) -> tuple[int, dict[str, Any]]:
        """Return the status and body that a route would answer with."""

    def failure(self) -> tuple[int, dict[str, Any]]:
        """Return the status and body that a route would answer an unexpected error with."""
