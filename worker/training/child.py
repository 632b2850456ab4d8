"""The trainer process: takes commands on standard input, answers on the standard output it got.

It is alone with its device and has no database: whatever it does can be lost at any moment. It
ends when its input does, so that no trainer outlives its supervisor.

With `TUNESMITH_PROCESSES` above 1 it starts more of its kind, and they share the steps of each run:
`ranks` says how. These take their commands from it, and answer nobody.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from app.domain.errors import DomainError
from worker.training.bases import WarmBases
from worker.training.commands import CommandQueue, Preload, Train
from worker.training.failures import explain
from worker.training.follow import follow_job
from worker.training.ranks import Ranks
from worker.training.run import run_job
from worker.training.siblings import Siblings
from worker.trunk.device import probe_device

# Tokens in one pass through the trunk, since activations need memory in proportion: 1.5 MB a
# token for a model of 135 million parameters in float32. A CPU is no faster with more than this
# (measured: 400 to 800 tokens are best, 1,600 cost a tenth more); a GPU is.
TOKEN_BUDGETS = {"cpu": 1024, "cuda": 4096}
PROCESSES_VARIABLE = "TUNESMITH_PROCESSES"

_MODULE = "worker.training.child"

_log = logging.getLogger("tunesmith.training")


def main() -> None:
    """Serve commands until standard input ends."""
    output = _claim_stdout()
    _arrange_process()
    arguments = _arguments()
    commands = CommandQueue()
    threading.Thread(target=_read_commands, args=[commands], daemon=True).start()
    size = int(os.environ.get(PROCESSES_VARIABLE) or 1)
    _share_threads(size)
    meeting = arguments.meeting
    siblings: Siblings | None = None
    if size > 1 and meeting is None:
        handle, name = tempfile.mkstemp(prefix="tunesmith-ranks-")
        os.close(handle)
        meeting = Path(name)
        siblings = Siblings(_MODULE, size, meeting, os.environ)
    profile = probe_device()
    ranks = Ranks(arguments.rank, size, meeting, profile.device) if meeting is not None else None
    bases = WarmBases(profile)
    token_budget = int(os.environ.get("TUNESMITH_TOKEN_BUDGET") or TOKEN_BUDGETS[profile.device])
    _write(
        output,
        {
            "type": "ready",
            "device": profile.device,
            "dtype": profile.dtype_name,
            "threads": profile.threads,
        },
    )
    while True:
        command = commands.next()
        if siblings is not None and isinstance(command, Train | Preload):
            siblings.send(command)
        if isinstance(command, Train):
            _train(command, bases, commands, output, token_budget, ranks)
        elif isinstance(command, Preload):
            _preload(command, bases)
        # A command to end a run that has ended already needs no answer.


def _train(
    command: Train,
    bases: WarmBases,
    commands: CommandQueue,
    output: int,
    token_budget: int,
    ranks: Ranks | None,
) -> None:
    job_id = command.spec.job_id

    def send(type: str, /, **fields: Any) -> None:
        _write(output, {"type": type, "job_id": job_id, "epoch": command.epoch, **fields})

    _log.info("job %s: attempt of lease %d starts", job_id, command.epoch)
    try:
        if ranks is not None:
            ranks.begin()
        if ranks is not None and ranks.rank > 0:
            follow_job(command, bases, ranks, token_budget)
        else:
            run_job(command, bases, commands, send, token_budget, ranks)
    except Exception as error:  # The boundary: whatever happens becomes a message.
        if not isinstance(error, DomainError):
            _log.exception("job %s: failed", job_id)
        failure = explain(error)
        if ranks is not None:
            ranks.fail(failure)
        send("failed", code=failure.code, param=failure.param, message=failure.message)
    else:
        return
    # After the handler, so that the failed run's tensors are not held by its traceback.
    bases.release_memory()


def _preload(command: Preload, bases: WarmBases) -> None:
    try:
        bases.get(command.base)
    except DomainError as error:
        _log.warning("base model %s: not preloaded: %s", command.base.id, error.message)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Used by the worker; not to be started by hand.")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meeting", type=Path, help="file of the rank that starts the others")
    return parser.parse_args()


def _share_threads(size: int) -> None:
    """Divide the cores among the processes, unless threads are set for each."""
    if size > 1 and not os.environ.get("TUNESMITH_THREADS"):
        os.environ["TUNESMITH_THREADS"] = str(max(1, (os.cpu_count() or 1) // size))


def _claim_stdout() -> int:
    """Keep standard output for messages: what a library prints goes to standard error instead."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def _arrange_process() -> None:
    # The terminal's Ctrl-C is for the supervisor, which then ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # cuBLAS is deterministic only with a workspace of its own, chosen before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory finds reads of it, and costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _read_commands(commands: CommandQueue) -> None:
    try:
        commands.read(sys.stdin.buffer)
    except msgspec.DecodeError as error:
        _log.error("not a command: %s", error)
        os._exit(2)
    os._exit(0)


def _write(output: int, message: dict[str, Any]) -> None:
    line = memoryview(msgspec.json.encode(message) + b"\n")
    while line:
        line = line[os.write(output, line) :]


if __name__ == "__main__":
    main()
