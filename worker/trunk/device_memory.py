"""How much memory a device has, and how much of it nothing uses."""

import os
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nothing uses."""
    if device.type == "cuda":
        # What torch holds for later use counts as free.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    available = int(psutil.virtual_memory().available)
    limit, used = _read("memory.max"), _read("memory.current")
    if limit is None or used is None:
        return available
    # Files that were read lately count as used, and make room when it is needed.
    return max(0, min(available, limit - used + _cached_file_bytes()))


def machine_bytes() -> int:
    """Return the memory of this machine, or of the container that bounds it."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("memory.max")
    return memory_bytes if limit is None else min(memory_bytes, limit)


def _cached_file_bytes() -> int:
    try:
        rows = (_CGROUP / "memory.stat").read_text().splitlines()
        return int(dict(row.split(maxsplit=1) for row in rows)["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _read(name: str) -> int | None:
    """Return a number of the container's; None where it has no such limit."""
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
