"""What the files of an installed base model tell of its layers, read without torch."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Architecture:
    """The layers of a base model.

    Attributes:
        layer_names: last names of the layers that have a matrix of weights, embeddings included.
        num_blocks: of the stack of equal layers; the larger one where there are two.
    """

    layer_names: frozenset[str]
    num_blocks: int


def block_of(path: str) -> int | None:
    """Return the number of the block that a module is part of; None of what is in no block.

    Models number their blocks from below: `model.layers.3.mlp.up_proj` is in block 3.
    """
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


@lru_cache(maxsize=64)
def read_architecture(directory: Path) -> Architecture | None:
    """Return the layers of the model in a directory; None if its files cannot be read.

    Only the headers are read. An installed model never changes: its directory is named by its
    revision.
    """
    shapes: dict[str, list[int]] = {}
    try:
        for path in sorted(directory.glob("*.safetensors")):
            shapes |= _shapes(path)
    except (OSError, KeyError, TypeError, msgspec.DecodeError):
        return None
    matrices = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    ]
    if not matrices:
        return None
    blocks = [block for path in matrices if (block := block_of(path)) is not None]
    return Architecture(
        layer_names=frozenset(path.rpartition(".")[2] for path in matrices),
        num_blocks=max(blocks, default=-1) + 1,
    )


def _shapes(path: Path) -> dict[str, list[int]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = file.read(min(length, _MAX_HEADER_BYTES))
    entries = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
    return {name: entry["shape"] for name, entry in entries.items() if name != "__metadata__"}
