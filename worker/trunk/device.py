"""What this machine computes on, and in which number format."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from app.domain.errors import InvalidInput

DTYPE_VARIABLE = "TUNESMITH_DTYPE"

_DTYPES = ("float32", "bfloat16")
# What a CPU needs to multiply bfloat16 by itself: without, that is up to fifty times slower than
# float32.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One device and how to use it.

    Attributes:
        device: `cpu` or `cuda`.
        dtype_name: format of the base model's weights and activations: `float32` or `bfloat16`.
        threads: threads of one operation on the CPU.
    """

    device: str
    dtype_name: str
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype


def probe_device(
    environment: Mapping[str, str] = os.environ, *, is_for_answers: bool = False
) -> DeviceProfile:
    """Set the number of threads, and choose the device and its number format.

    The format is bfloat16 where the device has units for it; but float32 on a CPU that answers,
    since in bfloat16 the shape of a batch decides near ties: a seed would give one answer alone and
    another beside others, or behind a prompt that is known. It follows from the hardware alone:
    a choice by measured speed would differ from one start to the next on a busy machine, and a
    resumed run would go on in another format than it began in.

    Raises:
        InvalidInput: `TUNESMITH_DTYPE` names no format.
    """
    threads = int(environment.get("TUNESMITH_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = "float32" if is_for_answers and device == "cpu" else _native_dtype(device)
    chosen = environment.get(DTYPE_VARIABLE) or usual
    if chosen not in _DTYPES:
        raise InvalidInput(f"{DTYPE_VARIABLE} must be {' or '.join(_DTYPES)}, found {chosen!r}")
    return DeviceProfile(device, chosen, threads)


def _native_dtype(device: str) -> str:
    if device == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_units = any(capabilities.get(name) for name in _BFLOAT16_UNITS)
    return "bfloat16" if has_units else "float32"
