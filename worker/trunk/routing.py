"""Which rows of a packed batch go through which adapter, worked out once for all layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.trunk.batch import Segment


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of one adapter.

    Attributes:
        adapter: its name.
        ranges: half-open row ranges, in order.
        index: every row, [rows] int64; None when the rows are all rows or one range.
        is_all: the adapter owns every row of the batch.
    """

    adapter: str
    ranges: tuple[tuple[int, int], ...]
    index: Tensor | None
    is_all: bool

    def take(self, stream: Tensor) -> Tensor:
        """Return the rows of `stream` [tokens, width]; no copy unless they are scattered."""
        if self.is_all:
            return stream
        if self.index is None:
            start, end = self.ranges[0]
            return stream[start:end]
        return stream.index_select(0, self.index)


@dataclass(slots=True)
class Routing:
    """The adapter rows of the batch that is being computed.

    One object is shared by every LoRA layer of a trunk; `set` renews it for each batch.
    """

    rows: tuple[AdapterRows, ...] = ()
    num_tokens: int = 0
    _masks: dict[tuple[tuple[str, int], ...], Tensor] = field(default_factory=dict)

    def set(self, segments: Sequence[Segment], num_tokens: int, device: torch.device) -> None:
        """Take over the segments of the next batch of `num_tokens` rows."""
        self.rows = route(segments, num_tokens, device)
        self.num_tokens = num_tokens
        self._masks.clear()

    def foreign_columns(self, columns: tuple[tuple[str, int], ...], device: torch.device) -> Tensor:
        """Return [tokens, sum of widths] bool: true where a row meets another adapter's column.

        Args:
            columns: adapters laid side by side, each with its width.
            device: where the mask is made.
        """
        if columns not in self._masks:
            mask = torch.ones(self.num_tokens, sum(w for _, w in columns), dtype=torch.bool)
            ranges_of = {rows.adapter: rows.ranges for rows in self.rows}
            first = 0
            for adapter, width in columns:
                for start, end in ranges_of[adapter]:
                    mask[start:end, first : first + width] = False
                first += width
            self._masks[columns] = mask.to(device)
        return self._masks[columns]


def route(
    segments: Iterable[Segment], num_tokens: int, device: torch.device
) -> tuple[AdapterRows, ...]:
    """Group the rows of each adapter, whatever their order; neighbours become one range."""
    ranges_of: dict[str, list[tuple[int, int]]] = {}
    for segment in segments:
        if segment.adapter is None:
            continue
        ranges = ranges_of.setdefault(segment.adapter, [])
        if ranges and ranges[-1][1] == segment.start:
            ranges[-1] = (ranges[-1][0], segment.end)
        else:
            ranges.append((segment.start, segment.end))
    return tuple(
        AdapterRows(
            adapter=adapter,
            ranges=tuple(ranges),
            index=_index(ranges, device) if len(ranges) > 1 else None,
            is_all=ranges == [(0, num_tokens)],
        )
        for adapter, ranges in ranges_of.items()
    )


def _index(ranges: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, end) for start, end in ranges]).to(device)
