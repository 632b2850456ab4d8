"""The header of a safetensors file: which tensors are in it, and where.

Format: https://huggingface.co/docs/safetensors. It is read without torch, so that a server without
it can say at the upload what is wrong.
"""

import math
from dataclasses import dataclass
from typing import IO, Literal

import msgspec

from app.domain.datasets.faults import quoted, shortened, wrong_file

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_NAME_CHARACTERS = 512
MAX_DIMENSIONS = 8

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

Dtype = Literal["F32", "F16", "BF16"]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: Dtype
    shape: tuple[int, ...]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(stream: IO[bytes], file_bytes: int, name: str) -> dict[str, TensorEntry]:
    """Read the beginning of a file, and return its tensors by name.

    Args:
        stream: at the file's first byte.
        file_bytes: how long the file is.
        name: of the file, for messages.

    Raises:
        InvalidFile: it is no safetensors file, has tensors of other types than float32, float16
            and bfloat16, or holds anything but its tensors.
    """
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if file_bytes < _LENGTH_BYTES or length > file_bytes - _LENGTH_BYTES:
        raise wrong_file(
            f"{name} is not safetensors: expected 8 bytes with the length of a header, and the "
            "header"
        )
    if length > MAX_HEADER_BYTES:
        raise wrong_file(f"the header of {name} is larger than {MAX_HEADER_BYTES:,} bytes")
    entries = _decode(stream.read(length), name)
    _check_places(entries, file_bytes - _LENGTH_BYTES - length, name)
    return {
        key: TensorEntry(entry.dtype, tuple(entry.shape))  # type: ignore[arg-type]
        for key, entry in entries.items()
    }


def _decode(header: bytes, name: str) -> dict[str, _Entry]:
    try:
        parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        if len(parts) > MAX_TENSORS:
            raise wrong_file(f"{name} has more than {MAX_TENSORS:,} tensors")
        metadata = parts.pop(_METADATA, None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        entries = {key: msgspec.json.decode(raw, type=_Entry) for key, raw in parts.items()}
    # Bytes that are no text are no DecodeError of msgspec's.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wrong_file(
            f"{name} is not safetensors: its header is not the JSON that it must be "
            f"({shortened(str(error), 200)})"
        ) from None
    for key, entry in entries.items():
        _check_entry(key, entry, name)
    return entries


def _check_entry(key: str, entry: _Entry, name: str) -> None:
    if len(key) > MAX_NAME_CHARACTERS:
        raise wrong_file(f"{name} has a tensor whose name is too long: {quoted(key)}")
    if entry.dtype not in _ITEM_BYTES:
        raise wrong_file(
            f"{name}: {quoted(key)} has the type {quoted(entry.dtype)}; expected float32 (F32), "
            "float16 (F16) or bfloat16 (BF16)"
        )
    if len(entry.shape) > MAX_DIMENSIONS or any(size < 1 for size in entry.shape):
        raise wrong_file(f"{name}: {quoted(key)} has a shape that no weight has")
    begin, end = entry.data_offsets
    if end - begin != math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]:
        raise wrong_file(
            f"{name}: {quoted(key)} of {entry.dtype} {shortened(str(entry.shape), 60)} does not "
            "have as many bytes as that takes"
        )


def _check_places(entries: dict[str, _Entry], num_bytes: int, name: str) -> None:
    """Refuse gaps and overlaps, in which anything could be hidden, and what lies outside."""
    at = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.data_offsets[0] != at:
            raise wrong_file(
                f"{name}: {quoted(key)} does not begin where the tensor before it ends"
            )
        at = entry.data_offsets[1]
    if at != num_bytes:
        raise wrong_file(f"{name} holds {num_bytes:,} bytes of tensors; its header tells of {at:,}")
