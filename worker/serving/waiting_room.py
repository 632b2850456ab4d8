"""Who waits for a place in the loop: bounded, by project and priority, and for so long only."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.errors import InvalidInput, TooManyRequests
from app.inference import Caller
from worker.serving.fair_line import FairLine
from worker.serving.ticket import Ticket
from worker.serving.turnover import Turnover


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How many sequences of one priority may wait, and for how long.

    Attributes:
        timeout_seconds: of normal priority alone; what nobody waits for may wait.
    """

    max_queued: int
    max_queued_per_project: int
    timeout_seconds: float


class WaitingRoom:
    """Those of normal priority go first; within a priority, projects take turns."""

    def __init__(self, limits: WaitingLimits, turnover: Turnover) -> None:
        self._limits = limits
        self._turnover = turnover
        self._normal: FairLine[Ticket] = FairLine()
        self._low: FairLine[Ticket] = FairLine()

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def tickets(self) -> list[Ticket]:
        return [*self._normal, *self._low]

    def refuse_too_many(self, caller: Caller, count: int, places: int, free: int) -> None:
        """Refuse sequences for which there is no room.

        Args:
            places: how many of this priority can run at once.
            free: how many of these are free.

        Raises:
            InvalidInput: there never is so much room.
            TooManyRequests: there will be, by an estimate, after the seconds that it tells.
        """
        line = self._line(caller.priority == "low")
        bounds = (
            # Of the project, which gets a part of the places that come free, and of all.
            (line.length_of(caller.project_id), self._limits.max_queued_per_project, line.projects),
            (len(line), self._limits.max_queued, 1),
        )
        for waiting, limit, parts in bounds:
            if count > limit + places:
                raise InvalidInput(
                    f"the request asks for {count} answers; the engine takes {limit + places} of "
                    "one request at most",
                    param="n",
                )
            excess = waiting + count - limit - free
            if excess > 0:
                seconds = self._turnover.seconds_until(excess * max(parts, 1))
                raise TooManyRequests(
                    "the engine has as many requests waiting as it accepts; try again in "
                    f"{seconds} s",
                    retry_after_seconds=seconds,
                )

    def add(self, ticket: Ticket) -> None:
        self._line(ticket.is_low).add(ticket.project_id, ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Let a sequence that had a place wait for the next one, before others of its project."""
        self._line(ticket.is_low).put_back(ticket.project_id, ticket)

    def first(self, running: Mapping[str, int]) -> Ticket | None:
        """Return who is next; `running` tells how many sequences of each project run."""
        turn = self._normal.first(running) or self._low.first(running)
        return turn and turn[2]

    def take(self, ticket: Ticket) -> None:
        """Let the one who is next leave."""
        self._line(ticket.is_low).take(ticket.project_id)

    def drop_cancelled(self) -> int:
        """Let those leave whose answers nobody waits for, and return how many."""
        return sum(
            len(line.drop(lambda one: one.generation.is_cancelled))
            for line in (self._normal, self._low)
        )

    def drop_overdue(self, now_seconds: float) -> list[tuple[Ticket, TooManyRequests]]:
        """Let those leave who have waited too long, and return what each is told.

        A request that has begun is not given up.
        """
        oldest = now_seconds - self._limits.timeout_seconds
        overdue = self._normal.drop(
            lambda one: one.since_seconds < oldest and not one.generation.has_begun
        )
        seconds = self._turnover.seconds_until(len(self._normal) + 1)
        return [(ticket, self._timed_out(seconds)) for ticket in overdue]

    def clear(self) -> None:
        self._normal.clear()
        self._low.clear()

    def _line(self, is_low: bool) -> FairLine[Ticket]:
        return self._low if is_low else self._normal

    def _timed_out(self, retry_after_seconds: int) -> TooManyRequests:
        return TooManyRequests(
            f"the request has waited {self._limits.timeout_seconds:g} s without getting its turn; "
            f"try again in {retry_after_seconds} s",
            code="queue_timeout",
            retry_after_seconds=retry_after_seconds,
        )
