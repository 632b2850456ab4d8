"""The trainer as a real process: its protocol, and all the ways in which it must end."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.domain.job_spec import JobSpec
from app.storage.local import LocalStorage
from tests.training.conftest import (
    SHORT_CHATS,
    SUPERVISED,
    Fields,
    job_spec,
    put_records,
)
from worker.training.manifest import BaseModelRef

START_SECONDS = 120
END_SECONDS = 20


class Child:
    """One trainer process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.training.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TUNESMITH_THREADS": "1"},
        )

    def send(self, op: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Fields:
        """Return the next message; the end of the output is an empty one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def until(self, *types: str) -> list[Fields]:
        """Return the messages up to the first of one of the types, or up to the end."""
        messages: list[Fields] = []
        while message := self.receive():
            messages.append(message)
            if message["type"] in types:
                break
        return messages

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        with suppress(BrokenPipeError):
            self.end_of_input()

    def end_of_input(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(END_SECONDS)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


@pytest.fixture
def deadline_file(tmp_path: Path) -> Path:
    path = tmp_path / "deadline"
    path.write_bytes(struct.pack("<d", time.monotonic() + 3600))
    return path


@pytest.fixture
def train(
    tiny_base: BaseModelRef, storage: LocalStorage, tmp_path: Path, deadline_file: Path
) -> Any:
    """Return the fields of a `train` command."""

    def fields(spec: JobSpec, lease: int = 1, **overrides: Any) -> Fields:
        return {
            "epoch": lease,
            "spec": msgspec.to_builtins(spec),
            "implementation": SUPERVISED,
            "base": msgspec.to_builtins(tiny_base),
            "storage_url": f"file://{tmp_path}/storage",
            "checkpoint_prefix": f"jobs/{spec.job_id}/e{lease}",
            "resume_from": None,
            "deadline_file": str(deadline_file),
            "checkpoint_interval_seconds": 300,
        } | overrides

    return fields


def types(messages: list[Fields]) -> list[str]:
    return [message["type"] for message in messages]


def test_the_life_of_a_trainer(child: Child, train: Any, storage: LocalStorage) -> None:
    spec = job_spec(put_records(storage, "train", SHORT_CHATS), num_epochs=16)
    (ready,) = child.until("ready")
    assert ready["threads"] == 1
    assert ready["dtype"] in ("float32", "bfloat16")
    child.process.send_signal(signal.SIGINT)  # The terminal's Ctrl-C is not for the trainer.

    child.send("preload", base=train(spec)["base"])
    child.send("stop")  # Nothing runs: there is nothing to stop.
    child.send("train", **train(spec))
    first = child.until("prepared", "failed")
    assert types(first) == ["prepared"]
    assert first[0]["base_load_seconds"] == 0  # It was loaded ahead.
    child.send("stop")
    stopped = child.until("stopped", "finished", "failed")[-1]
    assert (stopped["type"], stopped["job_id"], stopped["epoch"]) == ("stopped", spec.job_id, 1)

    child.send("train", **train(spec, lease=2, resume_from=stopped["prefix"]))
    second = child.until("finished", "failed")
    assert second[0]["type"] == "prepared"
    assert second[0]["start_step"] == stopped["step"]
    assert second[-1]["type"] == "finished"
    assert second[-1]["step"] == 48
    assert {message["epoch"] for message in second} == {2}
    assert storage.directory(second[-1]["prefix"]).is_dir()

    endless = job_spec(spec.training_file, job_id="endless", num_epochs=50, batch_size=1)
    child.send("train", **train(endless))
    child.until("step")
    child.send("abandon")
    abandoned = child.until("stopped", "finished", "failed")[-1]
    assert (abandoned["type"], abandoned["prefix"]) == ("stopped", None)

    bad = job_spec(put_records(storage, "bad", [{"messages": []}]), job_id="bad")
    child.send("train", **train(bad))
    (failed,) = child.until("failed", "finished")
    assert failed["code"] == "invalid_training_file"
    assert failed["param"] == "training_file"
    assert failed["message"].startswith("line 1: ")
    assert failed["job_id"] == "bad"

    # The end of its input ends it in the middle of a run: no trainer outlives its supervisor.
    child.send("train", **train(endless, lease=2))
    child.until("step")
    assert child.end_of_input() == 0


def test_past_its_deadline_it_takes_no_step(
    child: Child, train: Any, storage: LocalStorage, deadline_file: Path, tmp_path: Path
) -> None:
    spec = job_spec(put_records(storage, "train", SHORT_CHATS))
    deadline_file.write_bytes(struct.pack("<d", time.monotonic() - 1))
    child.until("ready")

    child.send("train", **train(spec))

    assert "step" not in types(child.until())
    assert child.process.wait(END_SECONDS) == 75
    assert not (tmp_path / "storage" / "jobs").exists()


def test_a_signal_ends_it(child: Child) -> None:
    child.until("ready")

    child.process.send_signal(signal.SIGTERM)

    assert child.process.wait(END_SECONDS) == -signal.SIGTERM
