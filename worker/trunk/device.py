"""What this machine computes on, and in which number format, decided by a short measurement."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# Rows, inner and outer width of the probe's matrix product: 85 million multiply-adds, so that
# even a processor without bfloat16 units (about 1 GFLOP/s) is measured in a fifth of a second.
_PROBE_SHAPE = (128, 1024, 640)


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One device and how to use it.

    Attributes:
        device: `cpu` or `cuda`.
        dtype_name: format of the base model's weights and activations: `float32` or `bfloat16`.
        threads: threads of one operation on the CPU.
        gflops: measured matrix-product rate by dtype name, in 1e9 operations a second.
    """

    device: str
    dtype_name: str
    threads: int
    gflops: Mapping[str, float]

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype


def probe_device(environment: Mapping[str, str] = os.environ) -> DeviceProfile:
    """Set the number of threads, then measure the device and choose its number format.

    A GPU computes in bfloat16 if it can. A CPU does where that is measured at least as fast as
    float32: without bfloat16 units it is up to fifty times slower.
    """
    threads = int(environment.get("TUNESMITH_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gflops = {
        name: _matmul_gflops(device, dtype)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    if device == "cuda":
        # So small a product is over before a GPU is warm: its rate tells nothing.
        is_chosen = torch.cuda.is_bf16_supported()
    else:
        is_chosen = gflops["bfloat16"] >= gflops["float32"]
    return DeviceProfile(device, "bfloat16" if is_chosen else "float32", threads, gflops)


def _matmul_gflops(device: str, dtype: torch.dtype, repeats: int = 3) -> float:
    rows, inner, outer = _PROBE_SHAPE
    left = torch.ones(rows, inner, device=device, dtype=dtype)
    right = torch.ones(inner, outer, device=device, dtype=dtype)
    best_seconds = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - started)
    return round(2 * rows * inner * outer / best_seconds / 1e9, 2)
