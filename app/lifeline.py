"""Ending with one's parent: a process whose standard input ends asks itself to terminate.

The parent holds the other end of the pipe, so that even its `kill -9` leaves no orphan behind.
"""

import os
import signal
import threading

_STDIN = 0

VARIABLE = "TUNESMITH_EXIT_WITH_STDIN"


def hold_lifeline() -> None:
    """Watch standard input from a thread, if the parent asked for it in the environment."""
    if os.environ.get(VARIABLE) == "1":
        threading.Thread(target=_wait_for_end, name="lifeline", daemon=True).start()


def _wait_for_end() -> None:
    # Not through `sys.stdin`, whose lock the interpreter needs when it shuts down.
    while os.read(_STDIN, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
