"""How fast places come free, so that whoever is refused can be told when to come back."""

import math
import time
from collections import deque
from collections.abc import Callable

# As many departures tell the rate of now; older ones tell of other work.
_REMEMBERED = 64
# Beyond this an estimate from the last minute's rate says nothing.
_LONGEST_SECONDS = 600


class Turnover:
    """Counts departures, and estimates when more will have happened.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._departures: deque[float] = deque(maxlen=_REMEMBERED)
        self._since = clock()

    def begin(self) -> None:
        """Note that work begins after there was none: what came before tells nothing of now."""
        self._departures.clear()
        self._since = self._clock()

    def note(self, count: int = 1) -> None:
        """Note that places have come free."""
        now = self._clock()
        for _ in range(count):
            if len(self._departures) == self._departures.maxlen:
                self._since = self._departures[0]
            self._departures.append(now)

    def seconds_until(self, count: float) -> int:
        """Return after how many seconds `count` more places will have come free, at least 1.

        Before the first has, each is taken to need as long as has passed without any.
        """
        elapsed = max(self._clock() - self._since, 0.0)
        seconds = elapsed * count / max(len(self._departures), 1)
        return max(1, min(math.ceil(seconds), _LONGEST_SECONDS))
