"""Writing down results: content first, then the row that makes their lines count as done."""

import threading
from collections.abc import Sequence

from app.db.repositories.batch_chunks import Chunk
from app.db.repositories.batch_leases import Standing
from app.resources import Resources
from app.services.batches.holding import Hold
from app.services.batches.results import Result, pack

# With so much that is not written down yet, no further line is asked.
FULL_BYTES = 4 << 20


class Ledger:
    """The results of one holder of a batch. `add` and `record` may come from different threads.

    Args:
        next_number: of the first chunk that this holder writes.
    """

    def __init__(self, resources: Resources, hold: Hold, next_number: int) -> None:
        self._storage = resources.storage
        self._hold = hold
        self._next_number = next_number
        self._lock = threading.Lock()
        self._recording = threading.Lock()
        self._fresh: list[Result] = []
        self._fresh_bytes = 0
        # Results whose row may or may not have been written: tried again under the same number.
        self._doubtful: Sequence[Result] = ()

    @property
    def is_full(self) -> bool:
        return self._fresh_bytes >= FULL_BYTES

    @property
    def is_written(self) -> bool:
        """Whether everything that was added counts."""
        return not self._doubtful and not self._fresh

    def add(self, result: Result) -> None:
        with self._lock:
            self._fresh.append(result)
            self._fresh_bytes += len(result.text)

    def record(self) -> Standing:
        """Write down what was added, and return how the batch stands.

        Raises:
            LeaseLost: nothing more can be written.
            Unavailable: try again; nothing is forgotten meanwhile.
        """
        with self._recording:
            return self._record()

    def _record(self) -> Standing:
        if not self._doubtful:
            with self._lock:
                self._doubtful, self._fresh, self._fresh_bytes = self._fresh, [], 0
        if not self._doubtful:
            return self._hold.look()
        # A name of its own, so that no other holder can write to what a row names.
        key = f"{prefix_of(self._hold.batch_id)}/e{self._hold.epoch}-{self._next_number}"
        self._storage.put(key, [pack(self._doubtful)])
        standing = self._hold.add_chunk(_chunk(self._next_number, key, self._doubtful))
        self._next_number += 1
        self._doubtful = ()
        return standing


def prefix_of(batch_id: str) -> str:
    """Return under what the chunks of a batch are stored."""
    return f"batches/{batch_id}"


def _chunk(number: int, key: str, results: Sequence[Result]) -> Chunk:
    return Chunk(
        number=number,
        storage_key=key,
        lines=[one.number for one in results],
        completed=sum(not one.is_error for one in results),
        failed=sum(one.is_error for one in results),
        input_tokens=sum(one.usage.input_tokens for one in results),
        cached_tokens=sum(one.usage.cached_tokens for one in results),
        output_tokens=sum(one.usage.output_tokens for one in results),
        reasoning_tokens=sum(one.usage.reasoning_tokens for one in results),
    )
