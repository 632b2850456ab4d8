"""The unit of computation: a packed stream of tokens, cut into segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.trunk.cache import SequenceCache


class Past(Protocol):
    """What came before the rows of a segment."""

    @property
    def length(self) -> int:
        """Tokens that it holds."""

    def append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values of a layer; see `SequenceCache`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's rows in a packed batch: the half-open range `start` to `end`.

    Attributes:
        adapter: name of the attached adapter that these rows go through; None is the base model.
        cache: what came before these rows; they are appended to it. None: they are the whole.
    """

    start: int
    end: int
    adapter: str | None
    cache: Past | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences one after another, without padding.

    Attributes:
        input_ids: [tokens] int64.
        position_ids: [tokens] int64, counted within each sequence.
        segments: in order, covering every row exactly once.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """What one sequence contributes to a packed batch: its new tokens, adapter and past."""

    token_ids: Sequence[int]
    adapter: str | None = None
    cache: SequenceCache | None = None


def pack(sequences: Sequence[SequenceRows], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay sequences one after another; positions continue from each one's cache."""
    token_ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    for rows in sequences:
        start, past = len(token_ids), rows.cache.length if rows.cache else 0
        token_ids.extend(rows.token_ids)
        positions.extend(range(past, past + len(rows.token_ids)))
        segments.append(Segment(start, len(token_ids), rows.adapter, rows.cache))
    return PackedBatch(
        input_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        position_ids=torch.tensor(positions, dtype=torch.int64, device=device),
        segments=tuple(segments),
    )
