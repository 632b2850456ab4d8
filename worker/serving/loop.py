"""The generation loop: continuous batching over one base model and all its adapters.

Each step is one packed forward pass: a token of every running sequence and a bounded number of
prompt tokens of those that have just joined, each through its own adapter. Sequences join and
leave between steps. One thread owns the model; everything else talks to it through the methods
of `GenerationLoop`.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from app.domain.errors import DomainError, EngineUnavailable, NotFound, TooManyRequests
from worker.generation.request import GenerationRequest, Piece
from worker.generation.sequence import SequenceState
from worker.generation.step import plan_step, run_step
from worker.generation.vocabulary import Vocabulary
from worker.serving.generation import Generation, deliver
from worker.serving.served_adapters import MixedAdapter
from worker.trunk.cache import SequenceCache
from worker.trunk.prompt import PromptAdapter
from worker.trunk.trunk import Trunk

_Sequence = SequenceState[Generation]


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """How much one loop takes on; see `EngineSettings`."""

    max_running: int = 16
    max_queued: int = 256
    prefill_tokens_per_step: int = 256


@dataclass(frozen=True, slots=True)
class LoopStats:
    """What a loop is doing, and has done since it began."""

    running: int
    waiting: int
    attached: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    cancelled: int


class GenerationLoop:
    """Generates for one base model, on a thread of its own.

    Args:
        trunk: the base model; this loop is its only user from now on.
        vocabulary: the tokens of the same base model.
        event_loop: where pieces are handed over.
    """

    def __init__(
        self,
        trunk: Trunk,
        vocabulary: Vocabulary,
        limits: LoopLimits,
        event_loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._trunk = trunk
        self._vocabulary = vocabulary
        self._limits = limits
        self._event_loop = event_loop
        # Guards what several threads use, and wakes the loop's own when there is work.
        self._changed = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._joining: deque[_Attachment] = deque()
        self._slots: set[str] = set()
        self._leaving: set[str] = set()
        self._is_closing = self._is_retired = False
        self._steps = self._prompt_tokens = self._generated_tokens = self._cancelled = 0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, requests: Sequence[GenerationRequest]) -> Generation:
        """Queue sequences, all of them or none, and return the handle of their answers.

        Raises:
            TooManyRequests: too many sequences are waiting.
            NotFound: an adapter is not attached, or no longer; or the loop was retired.
            EngineUnavailable: the loop has ended.
        """
        generation = Generation(len(requests))
        sequences = [
            _Sequence(request, index, generation, self._cache_for(request), self._vocabulary)
            for index, request in enumerate(requests)
        ]
        with self._changed:
            self._refuse_if_ended()
            for request in requests:
                if request.adapter is not None and request.adapter not in self._slots:
                    raise _unloaded()
            places = self._limits.max_running - len(self._running) + self._limits.max_queued
            if len(self._waiting) + len(sequences) > places:
                raise TooManyRequests(
                    "the engine has as many requests waiting as it accepts; try again"
                )
            self._waiting.extend(sequences)
            self._changed.notify()
        return generation

    def attach(self, slot: str, adapter: MixedAdapter) -> Future[None]:
        """Make an adapter available under a name that was never used before.

        The future's result raises what `Trunk.attach` raises.
        """
        attachment = _Attachment(slot, adapter)
        with self._changed:
            self._refuse_if_ended()
            self._joining.append(attachment)
            self._changed.notify()
        return attachment.done

    def detach(self, slot: str) -> None:
        """Refuse new sequences of an adapter and drop it when its last one has ended."""
        with self._changed:
            self._slots.discard(slot)
            self._leaving.add(slot)
            self._changed.notify()

    def is_idle(self, slot: str | None) -> bool:
        """Return whether no sequence runs or waits for this adapter; None is the base model."""
        with self._changed:
            return slot not in self._used_slots()

    def stats(self) -> LoopStats:
        with self._changed:
            return LoopStats(
                running=len(self._running),
                waiting=len(self._waiting),
                attached=len(self._slots),
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                cancelled=self._cancelled,
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
            if self._is_retired and not self._running and not self._waiting:
                return False
            while self._waiting and len(self._running) < self._limits.max_running:
                self._running.append(self._waiting.popleft())
            joining, self._joining = self._joining, deque()
            leaving = self._leaving - self._used_slots()
            self._leaving -= leaving
        for attachment in joining:
            self._attach(attachment)
        for slot in leaving:
            self._trunk.detach(slot)
        return True

    def _has_work(self) -> bool:
        return bool(
            self._is_closing
            or self._is_retired
            or self._running
            or self._waiting
            or self._joining
            or self._leaving
        )

    def _cache_for(self, request: GenerationRequest) -> SequenceCache:
        return self._trunk.new_cache(adapter=request.adapter)

    def _used_slots(self) -> set[str | None]:
        return {sequence.request.adapter for sequence in (*self._running, *self._waiting)}

    def _attach(self, attachment: "_Attachment") -> None:
        if not attachment.done.set_running_or_notify_cancel():
            return
        try:
            if isinstance(attachment.adapter, PromptAdapter):
                self._trunk.attach_prompt(attachment.slot, attachment.adapter)
            else:
                self._trunk.attach(attachment.slot, attachment.adapter)
        except Exception as error:
            attachment.done.set_exception(error)
            return
        with self._changed:
            self._slots.add(attachment.slot)
        attachment.done.set_result(None)

    def _refuse_if_ended(self) -> None:
        if self._is_retired:
            raise _unloaded()
        if self._is_closing or not self.is_alive:
            raise EngineUnavailable()

    def _drop_cancelled(self) -> None:
        before = len(self._running) + len(self._waiting)
        self._running = [one for one in self._running if not one.owner.is_cancelled]
        self._waiting = deque(one for one in self._waiting if not one.owner.is_cancelled)
        self._cancelled += before - len(self._running) - len(self._waiting)

    def _step(self) -> None:
        shares = plan_step(self._running, self._limits.prefill_tokens_per_step)
        if not shares:
            return
        self._prompt_tokens += sum(
            len(share.rows.token_ids) for share in shares if share.sequence.is_in_prompt
        )
        before = sum(share.sequence.generated_tokens for share in shares)
        arrivals: list[tuple[Generation, Piece | DomainError]] = []
        finished: set[_Sequence] = set()
        for share, outcome in run_step(self._trunk, shares):
            if outcome is None:
                continue
            arrivals.append((share.sequence.owner, outcome))
            if isinstance(outcome, DomainError) or outcome.finish_reason is not None:
                finished.add(share.sequence)
        self._steps += 1
        self._generated_tokens += sum(share.sequence.generated_tokens for share in shares) - before
        with self._changed:
            self._running = [one for one in self._running if one not in finished]
        if arrivals:
            # One wake-up of the event loop for all that a step has made.
            self._event_loop.call_soon_threadsafe(deliver, arrivals)

    def _end(self) -> None:
        """Fail what is left, so that no one waits for a thread that has ended."""
        with self._changed:
            self._is_closing = True
            left = {sequence.owner for sequence in (*self._running, *self._waiting)}
            self._running, self._waiting = [], deque()
            joining, self._joining = self._joining, deque()
        for attachment in joining:
            if attachment.done.set_running_or_notify_cancel():
                attachment.done.set_exception(EngineUnavailable())
        # The event loop can be gone by now, and with it everyone who could listen.
        with suppress(RuntimeError):
            self._event_loop.call_soon_threadsafe(
                deliver, [(generation, EngineUnavailable()) for generation in left]
            )


def _unloaded() -> NotFound:
    return NotFound("the adapter has been unloaded", param="model")


@dataclass(frozen=True, slots=True, eq=False)
class _Attachment:
    slot: str
    adapter: MixedAdapter
    done: Future[None] = field(default_factory=Future)
