"""A safetensors file read into memory of its own.

The library maps files instead: then whatever writes to a file later changes weights that were
checked, and one that is cut short ends the process.
"""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; together they take as much memory as the file has bytes.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no such file.
    """
    content = bytearray(path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        read = file.readinto(content)
    try:
        if read != len(content):
            raise ValueError("it is shorter than it was")
        start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = msgspec.json.decode(
            memoryview(content)[_LENGTH_BYTES:start], type=dict[str, msgspec.Raw]
        )
        header.pop(_METADATA, None)
        return {
            name: _tensor(content, start, msgspec.json.decode(entry, type=_Entry))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, RuntimeError, msgspec.DecodeError) as error:
        raise SafetensorError(f"{path.name} is not safetensors: {error}") from error


def _tensor(content: bytearray, start: int, entry: _Entry) -> Tensor:
    begin, end = entry.data_offsets
    dtype: Any = _DTYPES[entry.dtype]
    count = math.prod(entry.shape)
    if not 0 <= begin <= end <= len(content) - start or end - begin != count * dtype.itemsize:
        raise ValueError("a tensor lies outside of it")
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + begin)
    return flat.view(entry.shape)
