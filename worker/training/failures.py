"""What a failed run tells its user: a stable code, the field at fault and a sentence."""

from dataclasses import dataclass

import torch

from app.domain.errors import DomainError, StorageFull, TrainingFailed

# The machine's fault and not the job's: another attempt may go better.
IO_ERROR = "io_error"


@dataclass(frozen=True, slots=True)
class Failure:
    """The content of a `failed` message."""

    code: str
    param: str | None
    message: str


def explain(error: Exception) -> Failure:
    """Return what to tell of any error that ended a run."""
    if _is_out_of_memory(error):
        return Failure(
            "out_of_memory",
            "batch_size",
            "the device ran out of memory; a smaller batch_size or max_length needs less",
        )
    if isinstance(error, TrainingFailed | StorageFull):
        return Failure(error.code or "training_failed", error.param, error.message)
    if isinstance(error, OSError):
        return Failure(IO_ERROR, None, f"{type(error).__name__}: {error}")
    if isinstance(error, DomainError):
        return Failure("training_failed", error.param, error.message)
    return Failure("training_failed", None, f"{type(error).__name__}: {error}")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
