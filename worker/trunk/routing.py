"""Which rows of a packed batch go through which adapter, worked out once for all layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.trunk.adapter_stack import AdapterStack
from worker.trunk.arrangement import FEW_ROWS, Arrangement
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


@dataclass(frozen=True, slots=True)
class StackedRows:
    """The rows of adapters that are neighbours in a stack, one after another.

    Attributes:
        layers: their weights, as `AdapterStack.layers` returns them.
        count: how many they are.
        start: first row.
        each: rows of each adapter.
    """

    layers: Mapping[object, tuple[Tensor, Tensor]]
    count: int
    start: int
    each: int

    def take(self, stream: Tensor) -> Tensor:
        """Return the rows of `stream` [tokens, width] as [adapters, each, width]; no copy."""
        rows = stream[self.start : self.start + self.count * self.each]
        return rows.unsqueeze(1) if self.each == 1 else rows.view(self.count, self.each, -1)


@dataclass(slots=True)
class Routing:
    """The adapter rows of the batch that is being computed.

    One object is shared by every LoRA layer of a trunk; `set` renews it for each batch.

    Attributes:
        rows: of adapters that are computed one by one.
        stacked: of those that are computed together.
    """

    rows: tuple[AdapterRows, ...] = ()
    stacked: tuple[StackedRows, ...] = ()

    def set(
        self,
        segments: Sequence[Segment],
        num_tokens: int,
        device: torch.device,
        arrangement: Arrangement | None = None,
    ) -> None:
        """Take over the segments of the next batch of `num_tokens` rows.

        Args:
            arrangement: knows which adapters are stacked; None computes all one by one.
        """
        rows = route(segments, num_tokens, device)
        if arrangement is None:
            self.rows, self.stacked = rows, ()
        else:
            self.rows, self.stacked = _split(rows, arrangement)

    def restore(self, rows: tuple[AdapterRows, ...]) -> None:
        """Take over what `rows` were for another batch, all of which were computed one by one."""
        self.rows, self.stacked = rows, ()


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


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbours in a stack: from place `first` on, `count` adapters of `each` rows."""

    stack: AdapterStack
    first: int
    count: int
    start: int
    each: int

    def is_followed_by(self, stack: AdapterStack, place: int, start: int, each: int) -> bool:
        return (
            self.stack is stack
            and self.first + self.count == place
            and self.each == each
            and self.start + self.count * self.each == start
        )


def _split(
    routed: Sequence[AdapterRows], arrangement: Arrangement
) -> tuple[tuple[AdapterRows, ...], tuple[StackedRows, ...]]:
    """Part what is computed one by one from what is stacked; neighbours become one entry."""
    single: list[AdapterRows] = []
    runs: list[_Run] = []
    for rows in routed:
        start, end = rows.ranges[0]
        found = arrangement.find(rows.adapter)
        if found is None or len(rows.ranges) > 1 or end - start > FEW_ROWS:
            single.append(rows)
            continue
        stack, place = found
        if runs and runs[-1].is_followed_by(stack, place, start, end - start):
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(_Run(stack, place, 1, start, end - start))
    stacked = [
        StackedRows(
            run.stack.layers(run.first, run.first + run.count), run.count, run.start, run.each
        )
        for run in runs
    ]
    return tuple(single), tuple(stacked)
