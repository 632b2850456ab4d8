"""Entry of an export's process: `python -m worker.exporting`, a command on its standard input.

It answers with one JSON object on standard output, and ends at once when its input does: no export
outlives the worker that asked for it. What takes seconds to import is imported after that watch
has begun.
"""

import os
import sys
import threading

from app.domain.registry import resolve

# A run in training, which people wait for, goes first.
NICENESS = 5

_ANSWER = "worker.exporting.answering:answer"


def main() -> None:
    """Carry out one command."""
    output = _claim_stdout()
    os.nice(NICENESS)
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_input, daemon=True).start()
    with os.fdopen(output, "wb") as file:
        file.write(resolve(_ANSWER)(line))


def _claim_stdout() -> int:
    """Keep standard output for the answer; whatever a library prints goes to standard error."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def _end_with_input() -> None:
    # Past the buffer of Python's, whose lock would be held when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
