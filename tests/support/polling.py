"""Waiting for something to become true, instead of for time to pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    look: Callable[[], T], *, what: str, within_seconds: float = 30, every_seconds: float = 0.1
) -> T:
    """Look again and again, and return the first truthy thing that is seen.

    Raises:
        AssertionError: there was none in time; the message holds what was seen last.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within_seconds} s: {what}; last seen: {seen!r}")
        time.sleep(every_seconds)
