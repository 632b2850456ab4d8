"""Which sequences of a loop take part in its steps: who joins, and who has to yield.

Whoever yields loses its place and its memory and waits for others; it goes on later where it was,
and its answer is the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from worker.serving.cache_memory import CacheMemory
from worker.serving.ticket import AHEAD_TOKENS, Ticket
from worker.serving.waiting_room import WaitingRoom


@dataclass(frozen=True, slots=True)
class Places:
    """How many sequences run at once.

    Attributes:
        reserved: how many of them those of low priority never take.
    """

    max_running: int
    reserved: int

    def of(self, is_low: bool) -> int:
        """Return how many sequences may run before one of this priority is the last to join."""
        # A loop with few places has some for either priority.
        return max(1, self.max_running - self.reserved) if is_low else self.max_running


class Schedule:
    """Those who run, in the order in which they joined, and those who wait.

    The loop guards it by its lock, and changes who runs on its own thread alone.

    Attributes:
        preempted: how often a sequence had to yield.
    """

    def __init__(self, places: Places, memory: CacheMemory, waiting: WaitingRoom) -> None:
        self.running: list[Ticket] = []
        self.waiting = waiting
        self.preempted = 0
        self._places = places
        self._memory = memory

    def free_places(self, is_low: bool) -> int:
        return max(0, self._places.of(is_low) - len(self.running))

    def places(self, is_low: bool) -> int:
        return self._places.of(is_low)

    def grow(self) -> None:
        """Reserve memory for whoever needs more to go on.

        Whoever has the least right to it yields, until there is enough.
        """
        for ticket in sorted(self.running, key=_right):
            while ticket in self.running and ticket.sequence.is_open and ticket.is_full:
                capacity = ticket.grown_capacity
                if self._memory.reserve(capacity - ticket.capacity):
                    ticket.capacity = capacity
                else:
                    self.preempt(max(self.running, key=_right))

    def admit(self) -> None:
        """Let those who wait join while there are places and memory.

        A sequence of low priority yields to one of normal priority; nobody joins before whoever
        is next.
        """
        while True:
            running = Counter(ticket.project_id for ticket in self.running)
            ticket = self.waiting.first(running)
            if ticket is None:
                return
            while not self._reserve_place(ticket):
                yielding = [one for one in self.running if one.is_low and not ticket.is_low]
                if not yielding:
                    return
                self.preempt(max(yielding, key=_right))
            self.waiting.take(ticket)
            self.running.append(ticket)
            ticket.generation.has_begun = True

    def preempt(self, ticket: Ticket) -> None:
        """Let a sequence wait that runs; what it has computed is kept while there is room."""
        self.running.remove(ticket)
        self._memory.release(ticket, is_kept=True)
        self.waiting.put_back(ticket)
        self.preempted += 1

    def _reserve_place(self, ticket: Ticket) -> bool:
        if len(self.running) >= self._places.of(ticket.is_low):
            return False
        # Room for the next tokens of all others, so that none has to yield at once.
        headroom = AHEAD_TOKENS * len(self.running)
        capacity = ticket.first_capacity
        if not self._memory.reserve(capacity, headroom):
            return False
        ticket.capacity = capacity
        return True


def in_turn(tickets: Sequence[Ticket], prefill_tokens: int) -> list[Ticket]:
    """Return the sequences of a step in the order in which they may have its prompt tokens.

    Prompts that need no more than an equal share of these go first: they are through with this
    step, and a long prompt does not hold them up. The rest goes to whoever joined first.
    """
    in_prompt = sum(ticket.sequence.is_in_prompt for ticket in tickets)
    share = prefill_tokens // max(in_prompt, 1)
    return sorted(tickets, key=lambda ticket: ticket.sequence.unread_tokens > share)


def _right(ticket: Ticket) -> tuple[bool, int]:
    """Return what sorts sequences by their right to memory; the first has the most."""
    return ticket.is_low, ticket.number
