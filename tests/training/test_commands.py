"""What the supervisor asks and when it wants it to end, without the process around it."""

import io
import subprocess
import sys
import time
from pathlib import Path
from struct import pack

import msgspec
import pytest

from worker.training.commands import Abandon, CommandQueue, Preload, Stop
from worker.training.deadline import EXIT_PAST_DEADLINE, Deadline

BASE = b'{"id":"x","directory":"/x","revision":"1","name_or_path":"x"}'
PRELOAD = b'{"op":"preload","base":' + BASE + b"}\n"

# Takes a moment, enforces a deadline that is an hour away, rewrites it to the past, enforces it.
REWRITTEN = """
import sys, struct, time
from pathlib import Path
from worker.training.deadline import Deadline
path = Path(sys.argv[1])
with Deadline(path) as deadline:
    deadline.enforce()
    print("within", flush=True)
    path.write_bytes(struct.pack("<d", time.monotonic() - 0.001))
    deadline.enforce()
print("never printed")
"""


def queue_of(*lines: bytes) -> CommandQueue:
    commands = CommandQueue()
    commands.read(io.BytesIO(b"".join(lines)))
    return commands


def test_a_run_sees_what_ends_it_and_leaves_the_rest_in_order() -> None:
    commands = queue_of(PRELOAD, b'{"op":"stop"}\n', PRELOAD, b'{"op":"abandon"}\n')

    assert isinstance(commands.find_ending(), Stop)
    assert isinstance(commands.find_ending(), Abandon)
    assert commands.find_ending() is None
    assert isinstance(commands.next(), Preload)
    assert isinstance(commands.next(), Preload)


@pytest.mark.parametrize(
    "line", [b"not json\n", b'{"op":"dance"}\n', b'{"op":"preload"}\n', b"{}\n"]
)
def test_what_is_not_a_command_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        queue_of(line)


def test_without_a_deadline_nothing_ends() -> None:
    with Deadline(None) as deadline:
        deadline.enforce()


def test_a_deadline_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "deadline"
    path.write_bytes(pack("<d", time.monotonic() + 3600))

    ended = subprocess.run(
        [sys.executable, "-c", REWRITTEN, str(path)], stdout=subprocess.PIPE, check=False
    )

    assert (ended.returncode, ended.stdout) == (EXIT_PAST_DEADLINE, b"within\n")


@pytest.mark.parametrize("content", [None, b"", b"short"], ids=["gone", "empty", "cut"])
def test_a_deadline_that_cannot_be_read_has_passed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "deadline"
    if content is not None:
        path.write_bytes(content)

    ended = subprocess.run(
        [sys.executable, "-c", REWRITTEN, str(path)], stdout=subprocess.PIPE, check=False
    )

    assert (ended.returncode, ended.stdout) == (EXIT_PAST_DEADLINE, b"")
