"""From a command to the answer of an export's process."""

import logging
import os
from typing import Any

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from app.domain.errors import DomainError
from worker.exporting.command import Command
from worker.exporting.run import run_export

_log = logging.getLogger("tunesmith.exporting")


def answer(line: bytes) -> bytes:
    """Carry out a command, a line of JSON, and return the answer, which is another."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(int(os.environ.get("TUNESMITH_THREADS") or os.cpu_count() or 1))
    return msgspec.json.encode(_answer(msgspec.json.decode(line, type=Command))) + b"\n"


def _answer(command: Command) -> dict[str, Any]:
    try:
        made = run_export(command)
    except Exception as error:  # The boundary: whatever happens becomes a message.
        if isinstance(error, DomainError):
            _log.warning("the export failed: %s", error.message)
            return {
                "type": "failed",
                "code": error.code,
                "message": error.message,
                "param": error.param,
                "verification": getattr(error, "verification", None),
            }
        _log.exception("the export failed")
        kind = type(error).__name__
        return {
            "type": "failed",
            "code": "export_failed",
            "message": f"{kind}: {error}",
            "param": None,
            "verification": None,
        }
    return {"type": "finished", "files": made.files, "verification": made.verification}
