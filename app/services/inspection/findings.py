"""What an inspection brings to light: one finding a check."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check went; FAIL is what breaks a promise of the service."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        advice: what to do about it, unless it is ok.
    """

    check: str
    state: State
    found: str
    advice: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, State.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    return Finding(check, State.FAIL, found, advice)


def reason_of(error: BaseException) -> str:
    """Return in one line what went wrong at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def age(seconds: float) -> str:
    """Return a duration as one reads it: `45 s`, `12 min`, `3 h`, `2 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count_bytes: int) -> str:
    """Return a number of bytes as one reads it: `512 MiB`, `3.4 GiB`."""
    if count_bytes >= 1 << 30:
        return f"{count_bytes / (1 << 30):.1f} GiB"
    return f"{count_bytes / (1 << 20):.0f} MiB"
