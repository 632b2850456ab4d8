"""What the comparison and its peers say to each other: one JSON object a line.

Every peer runs in a process and an environment of its own, so this needs nothing but Python.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# From a case (`base`, `one`, `mixed`), prompts and a number of tokens to the tokens of each answer.
Answer = Callable[[str, list[list[int]], int], list[list[int]]]

ADAPTERS = 8
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
# Threads that wait for one another spin, so the processor time of several is not that of the work.
clock = time.process_time if THREADS == 1 else time.perf_counter


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True, help="directory of a0 to a7")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--gguf", type=Path, help="the base model as llama.cpp reads it")
    return parser.parse_args()


def adapter_of(case: str, place: int) -> str | None:
    """Return the adapter that the sequence at a place goes through."""
    if case == "mixed":
        return f"a{place % ADAPTERS}"
    return "a0" if case == "one" else None


def serve(
    answer: Answer, more: dict[str, Callable[[list[list[int]]], float]] | None = None
) -> None:
    """Answer what standard input asks, until it ends.

    Args:
        more: other measurements by their case: from prompts to seconds.
    """
    # What libraries print must not get between the lines.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _write(replies, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        if more is not None and asked["case"] in more:
            _write(replies, {"seconds": more[asked["case"]](asked["prompts"])})
            continue
        started = clock()
        answers = answer(asked["case"], asked["prompts"], asked["tokens"])
        seconds = clock() - started
        _write(replies, {"seconds": seconds, "answers": answers})


def _write(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
