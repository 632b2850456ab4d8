"""Asking the lines of one batch, several at once, until none is left or the batch is to end."""

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeVar

from app.db.repositories.batch_leases import Standing
from app.db.repositories.batches import Batch
from app.domain.batches import BatchStatus
from app.domain.errors import DomainError, InvalidInput, LeaseLost, TooManyRequests, Unavailable
from app.inference import Caller
from app.inference.port import EngineUnreachable
from app.resources import Resources
from app.services.batches.endpoints import ENDPOINTS
from app.services.batches.ledger import Ledger
from app.services.batches.reading import custom_id_of, read_lines, take_lines
from app.services.batches.results import Result, answered, refused
from app.services.batches.wire import Line, Wire

RECORD_EVERY_SECONDS = 1.0

# With so many lines that are to be asked again, no new one is begun.
MAX_DELAYED = 64

_log = logging.getLogger("tunesmith.batches")

T = TypeVar("T")


class Threads(Protocol):
    """Runs what blocks in a thread, for coroutines."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How a line is asked again that was not answered.

    Attributes:
        max_failures: a line at which the engine fails is asked so often. One that finds no place in
            its queue, or no engine, is asked for as long as the batch has time.
        first_seconds: the longest pause before the second time; it doubles each time.
        longest_seconds: the longest of all.
    """

    max_failures: int = 8
    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def pause_seconds(self, times: int) -> float:
        """Return how long to wait after so many times."""
        longest = min(self.first_seconds * 2.0 ** min(times - 1, 32), self.longest_seconds)
        # Spread, or all that were refused together would come back together.
        return longest * random.uniform(0.5, 1)


PATIENCE = Patience()


@dataclass(frozen=True, slots=True, order=True)
class _Turn:
    """A line that is to be asked, not before it is due.

    Attributes:
        due: by the loop's clock.
        refusals: how often the engine had no place for it, or was away.
        failures: how often the engine failed at it.
    """

    due: float
    number: int
    line: Line = field(compare=False)
    refusals: int = field(default=0, compare=False)
    failures: int = field(default=0, compare=False)


class Asking:
    """The lines of one batch that are still to be answered.

    Args:
        stream: the input of the batch, from its start.
        done: numbers of the lines that count as done.
        places: how many lines of all batches may be asked at once; handed out in order of asking,
            and each batch asks for one at a time, so that batches take turns.
        parallel: how many lines of this batch may be.
    """

    def __init__(
        self,
        resources: Resources,
        wire: Wire,
        batch: Batch,
        ledger: Ledger,
        *,
        stream: BinaryIO,
        done: set[int],
        places: asyncio.Semaphore,
        parallel: int,
        patience: Patience,
        in_thread: Threads,
    ) -> None:
        self._engine = resources.engine
        self._resources = resources
        self._wire = wire
        self._batch = batch
        self._ledger = ledger
        self._stream = stream
        self._unread = (pair for pair in read_lines(stream) if pair[0] not in done)
        self._places = places
        self._parallel = parallel
        self._complete = ENDPOINTS[batch.endpoint].complete
        self._patience = patience
        self._in_thread = in_thread
        self._caller = Caller(batch.project_id, "low")
        self._read: list[Line] = []
        self._is_exhausted = False
        self._delayed: list[_Turn] = []
        self._asked = 0
        self._is_engine_doubtful = True
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Return when every line counts as done, or the batch is being cancelled or has expired.

        Raises:
            LeaseLost: another holds the batch; it has what was written down.
        """
        with closing(self._stream):
            feeding = asyncio.create_task(self._feed())
            try:
                while not await self._is_over(feeding):
                    await asyncio.wait({feeding}, timeout=RECORD_EVERY_SECONDS)
                    if feeding.done():
                        feeding.result()
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
                # What was answered while the others were being called off.
                with suppress(LeaseLost, Unavailable):
                    await self._in_thread(self._ledger.record)

    async def _is_over(self, feeding: "asyncio.Task[None]") -> bool:
        is_fed = feeding.done()
        try:
            standing: Standing = await self._in_thread(self._ledger.record)
        except Unavailable as error:
            _log.warning("answers of %s wait to be stored: %s", self._batch.id, error.message)
            return False
        self._changed.set()
        if standing.status is not BatchStatus.IN_PROGRESS or standing.is_expired:
            return True
        return is_fed and self._ledger.is_written

    async def _feed(self) -> None:
        async with asyncio.TaskGroup() as asking:
            while (turn := await self._next()) is not None:
                await self._until_engine_is_ready()
                await self._places.acquire()
                self._asked += 1
                asking.create_task(self._ask(turn))

    async def _next(self) -> _Turn | None:
        """Return the next line to ask, once there is one; None when all have been answered."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait_seconds = None
            if self._asked < self._parallel and not self._ledger.is_full:
                if self._delayed and self._delayed[0].due <= loop.time():
                    return heapq.heappop(self._delayed)
                if len(self._delayed) < MAX_DELAYED and (line := await self._next_line()):
                    return _Turn(loop.time(), line.number, line)
                if self._delayed:
                    wait_seconds = max(0.0, self._delayed[0].due - loop.time())
                elif self._is_exhausted and not self._asked:
                    return None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_seconds)

    async def _next_line(self) -> Line | None:
        while not self._read and not self._is_exhausted:
            self._read = await self._in_thread(self._read_some)
        return self._read.pop() if self._read else None

    def _read_some(self) -> list[Line]:
        """Return the next few lines, the first of them last."""
        raw = take_lines(self._unread)
        self._is_exhausted = not raw
        return list(self._parsed(raw))[::-1]

    def _parsed(self, pairs: list[tuple[int, bytes]]) -> Iterator[Line]:
        for number, raw in pairs:
            try:
                yield self._wire.parse(self._batch.endpoint, number, raw)
            except InvalidInput as error:
                # It was valid when the batch began: the service is of another version by now.
                self._ledger.add(refused(number, custom_id_of(raw), *self._wire.refusal(error)))

    async def _until_engine_is_ready(self) -> None:
        """Ask nothing while the engine is away: its absence is no fault of a line."""
        while self._is_engine_doubtful and not await self._engine.is_ready():
            await asyncio.sleep(self._patience.first_seconds)
        self._is_engine_doubtful = False

    async def _ask(self, turn: _Turn) -> None:
        try:
            result = await self._result_of(turn)
            if result is not None:
                self._ledger.add(result)
        finally:
            self._asked -= 1
            self._places.release()
            self._changed.set()

    async def _result_of(self, turn: _Turn) -> Result | None:
        """Return what came of a line, or None if it is to be asked again."""
        line = turn.line
        try:
            body = await self._complete(self._resources, self._caller, line.body)
            return answered(line.number, line.custom_id, body)
        except (TooManyRequests, EngineUnreachable) as error:
            self._is_engine_doubtful |= isinstance(error, EngineUnreachable)
            self._delay(turn, refusals=turn.refusals + 1, failures=turn.failures)
            return None
        except Unavailable as error:
            self._is_engine_doubtful = True
            if turn.failures + 1 < self._patience.max_failures:
                self._delay(turn, refusals=turn.refusals, failures=turn.failures + 1)
                return None
            return self._refused(line, error)
        except DomainError as error:
            return self._refused(line, error)
        except Exception:  # One line's trouble must not hold up the others.
            _log.exception("cannot answer line %d of %s", line.number, self._batch.id)
            return refused(line.number, line.custom_id, *self._wire.failure())

    def _refused(self, line: Line, error: DomainError) -> Result:
        return refused(line.number, line.custom_id, *self._wire.refusal(error))

    def _delay(self, turn: _Turn, *, refusals: int, failures: int) -> None:
        pause_seconds = self._patience.pause_seconds(refusals + failures)
        due = asyncio.get_running_loop().time() + pause_seconds
        heapq.heappush(self._delayed, _Turn(due, turn.number, turn.line, refusals, failures))
