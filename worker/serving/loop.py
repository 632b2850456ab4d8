"""The generation loop: continuous batching over one base model and all its adapters.

Each step is one packed forward pass: a token of every running sequence and a bounded number of
prompt tokens of those that have just joined, each through its own adapter. Sequences join and
leave between steps; who does is `worker.serving.schedule`'s to say. One thread owns the model;
everything else talks to it through the methods of `GenerationLoop`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import torch

from app.domain.errors import DomainError, EngineUnavailable, InvalidInput, NotFound
from app.inference import Caller
from worker.generation.request import GenerationFailed, GenerationRequest, Piece
from worker.generation.step import plan_step, run_step
from worker.generation.vocabulary import Vocabulary
from worker.serving.cache_memory import CacheMemory
from worker.serving.callers import ANONYMOUS
from worker.serving.generation import Generation, deliver
from worker.serving.loop_adapters import LoopAdapters, refuse
from worker.serving.loop_stats import LoopStats
from worker.serving.prompt_pace import STEP_SECONDS, PromptPace
from worker.serving.schedule import Places, Schedule, in_turn
from worker.serving.served_adapters import MixedAdapter
from worker.serving.ticket import Ticket
from worker.serving.turnover import Turnover
from worker.serving.waiting_room import WaitingLimits, WaitingRoom
from worker.trunk.trunk import Trunk

logger = logging.getLogger(__name__)

_Arrival = tuple[Generation, Piece | DomainError]


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """How much one loop takes on; see `EngineSettings`. `ServedBase` replaces a None."""

    max_running: int = 16
    reserved_places: int = 2
    max_queued: int = 256
    max_queued_per_project: int = 128
    queue_timeout_seconds: float = 120
    prefill_tokens_per_step: int = 256
    step_seconds: float = STEP_SECONDS
    kv_tokens: int | None = 32_768


class GenerationLoop:
    """Generates for one base model, on a thread of its own.

    Args:
        trunk: the base model; this loop is its only user from now on.
        vocabulary: the tokens of the same base model.
        event_loop: where pieces are handed over.
        clock: returns seconds; what waiting times, steps and rates are measured with.
    """

    def __init__(
        self,
        trunk: Trunk,
        vocabulary: Vocabulary,
        limits: LoopLimits,
        event_loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trunk = trunk
        self._vocabulary = vocabulary
        self._limits = limits
        self._event_loop = event_loop
        self._clock = clock
        # Guards what several threads use, and wakes the loop's own when there is work.
        self._changed = threading.Condition()
        self._turnover = Turnover(clock)
        assert limits.kv_tokens is not None
        self._memory = CacheMemory(trunk, limits.kv_tokens)
        self._schedule = Schedule(
            Places(limits.max_running, limits.reserved_places),
            self._memory,
            WaitingRoom(
                WaitingLimits(
                    limits.max_queued, limits.max_queued_per_project, limits.queue_timeout_seconds
                ),
                self._turnover,
            ),
        )
        self._pace = PromptPace(limits.prefill_tokens_per_step, limits.step_seconds)
        self._numbers = count()
        self._adapters = LoopAdapters(trunk, self._changed)
        self._is_closing = self._is_retired = False
        self._steps = self._prompt_tokens = self._generated_tokens = 0
        self._cancelled = self._refused = self._timed_out = 0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(
        self, requests: Sequence[GenerationRequest], caller: Caller = ANONYMOUS
    ) -> Generation:
        """Queue sequences for a caller, all or none, and return the handle of their answers.

        Raises:
            InvalidInput: they can never be answered: they are too long or too many.
            TooManyRequests: too many sequences are waiting, of this project or of all.
            NotFound: an adapter is not attached, or no longer; or the loop was retired.
            EngineUnavailable: the loop has ended.
        """
        generation = Generation(len(requests), caller)
        with self._changed:
            self._refuse_if_ended()
            for request in requests:
                if request.adapter not in self._adapters:
                    raise _unloaded()
            tickets = self._tickets(generation, requests)
            self._refuse_too_many(caller, len(tickets))
            if not self._schedule.running:
                self._turnover.begin()
            for ticket in tickets:
                self._schedule.waiting.add(ticket)
            self._changed.notify()
        return generation

    def attach(self, slot: str, adapter: MixedAdapter) -> Future[None]:
        """Make an adapter available under a name that was never used before.

        The future's result raises what `Trunk.attach` raises.
        """
        with self._changed:
            self._refuse_if_ended()
            self._changed.notify()
            return self._adapters.join(slot, adapter)

    def detach(self, slot: str) -> None:
        """Refuse new sequences of an adapter and drop it when its last one has ended."""
        with self._changed:
            self._adapters.leave(slot)
            self._changed.notify()

    def is_idle(self, slot: str | None) -> bool:
        """Return whether no sequence runs or waits for this adapter; None is the base model."""
        with self._changed:
            return slot not in self._used_slots()

    def stats(self) -> LoopStats:
        with self._changed:
            return LoopStats(
                running=len(self._schedule.running),
                waiting=len(self._schedule.waiting),
                attached=len(self._adapters),
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                cancelled=self._cancelled,
                refused=self._refused,
                timed_out=self._timed_out,
                preempted=self._schedule.preempted,
                kv_tokens=self._memory.tokens,
                kv_reserved_tokens=self._memory.reserved_tokens,
                kv_stored_tokens=self._memory.stored_tokens,
                prefix_hits=self._memory.prefix_hits,
                reused_tokens=self._memory.reused_tokens,
            )

    def retire(self) -> None:
        """Refuse new sequences and end when the last one has ended."""
        with self._changed:
            self._is_retired = True
            self._changed.notify()

    def close(self) -> None:
        """End after the step in progress; whatever still runs fails as `EngineUnavailable`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _tickets(
        self, generation: Generation, requests: Sequence[GenerationRequest]
    ) -> list[Ticket]:
        """Return a ticket for each request. Raises: InvalidInput, if one never fits."""
        number, now = next(self._numbers), self._clock()
        prompts = set[tuple[int, ...]]()
        tickets = []
        for index, request in enumerate(requests):
            ticket = Ticket(
                generation,
                request,
                index,
                self._vocabulary,
                number=number,
                since_seconds=now,
                virtual_tokens=self._adapters.virtual_tokens(request.adapter),
                tells_cached=request.prompt_ids not in prompts,
            )
            prompts.add(request.prompt_ids)
            tickets.append(ticket)
            if ticket.most_tokens > self._memory.tokens:
                raise InvalidInput(
                    f"prompt and answer take up to {ticket.most_tokens} tokens; the engine has "
                    f"memory for {self._memory.tokens} (ENGINE_KV_TOKENS)",
                    param="max_tokens",
                    code="context_length_exceeded",
                )
        return tickets

    def _refuse_too_many(self, caller: Caller, number: int) -> None:
        is_low = caller.priority == "low"
        schedule = self._schedule
        try:
            schedule.waiting.refuse_too_many(
                caller, number, schedule.places(is_low), schedule.free_places(is_low)
            )
        except DomainError:
            self._refused += number
            raise

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._prepare():
                    self._step()
        finally:
            self._end()

    def _prepare(self) -> bool:
        """Wait for work, let sequences leave and join, and return whether to go on."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._is_closing:
                return False
            self._drop_cancelled()
            overdue = self._schedule.waiting.drop_overdue(self._clock())
            self._timed_out += len(overdue)
            if self._is_retired and not self._schedule.running and not self._schedule.waiting:
                return False
            self._schedule.grow()
            self._schedule.admit()
            # What it has left behind goes at once, the adapter itself with its last sequence.
            for slot in self._adapters.leaving:
                self._memory.forget_slot(slot)
            joining, gone = self._adapters.next_turn(self._used_slots())
        self._deliver([(ticket.generation, error) for ticket, error in overdue])
        self._adapters.attach(joining)
        self._adapters.detach(gone)
        return True

    def _has_work(self) -> bool:
        return bool(
            self._is_closing
            or self._is_retired
            or self._schedule.running
            or len(self._schedule.waiting)
            or self._adapters.has_work
        )

    def _used_slots(self) -> set[str | None]:
        tickets = (*self._schedule.running, *self._schedule.waiting.tickets())
        return {ticket.request.adapter for ticket in tickets}

    def _refuse_if_ended(self) -> None:
        if self._is_retired:
            raise _unloaded()
        if self._is_closing or not self.is_alive:
            raise EngineUnavailable()

    def _drop_cancelled(self) -> None:
        self._cancelled += self._schedule.waiting.drop_cancelled()
        for ticket in list(self._schedule.running):
            if ticket.generation.is_cancelled:
                self._leave(ticket)
                self._cancelled += 1

    def _leave(self, ticket: Ticket, *, has_failed: bool = False) -> None:
        """Let a sequence leave for good; the lock is held."""
        self._schedule.running.remove(ticket)
        is_kept = not has_failed and ticket.request.adapter in self._adapters
        self._memory.release(ticket, is_kept)
        self._turnover.note()

    def _step(self) -> None:
        running = self._schedule.running
        failed = [ticket for ticket in running if not self._has_room(ticket)]
        ready = [one for one in running if one.sequence.is_open and one not in failed]
        is_answering = any(not ticket.sequence.is_in_prompt for ticket in ready)
        prefill_tokens = self._pace.tokens(is_answering=is_answering)
        tickets = in_turn(ready, prefill_tokens)
        shares = plan_step([ticket.sequence for ticket in tickets], prefill_tokens)
        prompt_tokens = sum(
            len(share.rows.token_ids) for share in shares if share.sequence.is_in_prompt
        )
        self._prompt_tokens += prompt_tokens
        started = self._clock()
        before = sum(share.sequence.generated_tokens for share in shares)
        arrivals: list[_Arrival] = [(ticket.generation, GenerationFailed()) for ticket in failed]
        finished = dict.fromkeys(failed, True)
        for share, outcome in run_step(self._trunk, shares) if shares else ():
            if outcome is None:
                continue
            ticket = share.sequence.owner
            arrivals.append((ticket.generation, outcome))
            if isinstance(outcome, DomainError) or outcome.finish_reason is not None:
                finished[ticket] = isinstance(outcome, DomainError)
        if shares:
            self._pace.note(prompt_tokens, self._clock() - started)
            self._steps += 1
        self._generated_tokens += sum(share.sequence.generated_tokens for share in shares) - before
        with self._changed:
            for ticket, has_failed in finished.items():
                self._leave(ticket, has_failed=has_failed)
        self._deliver(arrivals)

    def _has_room(self, ticket: Ticket) -> bool:
        """Give a sequence the cache that it has reserved, and say whether that went well."""
        try:
            if not ticket.sequence.is_open:
                self._memory.open(ticket, self._schedule.running)
            elif ticket.sequence.room < ticket.capacity:
                ticket.sequence.grow(ticket.capacity)
        except Exception:
            logger.exception("a sequence failed before a step")
            return False
        return True

    def _deliver(self, arrivals: Sequence[_Arrival]) -> None:
        """Hand over what a step has made, with one wake-up of the event loop for all."""
        if arrivals:
            self._event_loop.call_soon_threadsafe(deliver, arrivals)

    def _end(self) -> None:
        """Fail what is left, so that no one waits for a thread that has ended."""
        with self._changed:
            self._is_closing = True
            tickets = (*self._schedule.running, *self._schedule.waiting.tickets())
            left = {ticket.generation for ticket in tickets}
            self._schedule.running.clear()
            self._schedule.waiting.clear()
            self._memory.clear()
            joining = self._adapters.end()
        refuse(joining)
        # The event loop can be gone by now, and with it everyone who could listen.
        with suppress(RuntimeError):
            self._deliver([(generation, EngineUnavailable()) for generation in left])


def _unloaded() -> NotFound:
    return NotFound("the adapter has been unloaded", param="model")
