"""Batches of requests: their statuses, and how much one may hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_LINES = 50_000
MAX_BYTES = 200_000_000
WINDOW_SECONDS = 24 * 3_600

# Of the mistakes in an input file, so many are told at once.
MAX_ERRORS = 100


class BatchStatus(StrEnum):
    """OpenAI's statuses; from `in_progress` on, all lines of the input are known to be valid."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


TERMINAL = frozenset(
    {
        BatchStatus.COMPLETED,
        BatchStatus.EXPIRED,
        BatchStatus.CANCELLED,
        BatchStatus.FAILED,
    }
)
LIVE = frozenset(BatchStatus) - TERMINAL

# Any of them may fail, too: its input may be gone.
MOVES: Mapping[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset({BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
}

CANCELLABLE = frozenset(one for one, to in MOVES.items() if BatchStatus.CANCELLING in to)


@dataclass(frozen=True, slots=True)
class BatchError:
    """What is wrong with a batch as a whole, or with one line of its input.

    Attributes:
        line: its number, from 1.
        param: the field at fault, from the line's top: `body.messages[0].role`.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


def may_move(source: BatchStatus, to: BatchStatus) -> bool:
    """Say whether a batch may go from one status to another."""
    if to is BatchStatus.FAILED:
        return source in LIVE
    return to in MOVES.get(source, frozenset())
