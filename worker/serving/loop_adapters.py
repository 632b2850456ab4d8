"""The adapters of a generation loop: who comes, who is there, and who is about to leave."""

import threading
from collections import deque
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field

from app.domain.errors import EngineUnavailable
from worker.serving.served_adapters import MixedAdapter
from worker.trunk.prompt import PromptAdapter
from worker.trunk.trunk import Trunk


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """An adapter on its way into the loop."""

    slot: str
    adapter: MixedAdapter
    done: Future[None] = field(default_factory=Future)


class LoopAdapters:
    """Adapters by their names in the loop, none of which is ever used twice.

    Args:
        trunk: the loop's thread alone attaches to it and detaches.
        guard: the loop's lock. Whoever calls holds it, but of `attach` and `detach`.

    Attributes:
        leaving: who takes no new sequences and goes with its last one.
    """

    def __init__(self, trunk: Trunk, guard: threading.Condition) -> None:
        self.leaving: set[str] = set()
        self._trunk = trunk
        self._guard = guard
        self._joining: deque[Attachment] = deque()
        # Each with the length of its learnt prompt; None is the base model.
        self._slots: dict[str | None, int] = {None: 0}

    def __contains__(self, slot: object) -> bool:
        return slot in self._slots

    def __len__(self) -> int:
        return len(self._slots) - 1

    @property
    def has_work(self) -> bool:
        return bool(self._joining or self.leaving)

    def virtual_tokens(self, slot: str | None) -> int:
        """Return the length of an adapter's learnt prompt."""
        return self._slots[slot]

    def join(self, slot: str, adapter: MixedAdapter) -> Future[None]:
        """Let an adapter be attached by the loop's thread; see `GenerationLoop.attach`."""
        attachment = Attachment(slot, adapter)
        self._joining.append(attachment)
        return attachment.done

    def leave(self, slot: str) -> None:
        """Take no more sequences of an adapter, be it there or on its way."""
        self._slots.pop(slot, None)
        self.leaving.add(slot)

    def next_turn(self, used: Set[str | None]) -> tuple[Sequence[Attachment], Set[str]]:
        """Return who is to be attached now, and who to be detached after that.

        Args:
            used: adapters of sequences that run or wait.
        """
        joining, self._joining = self._joining, deque()
        gone = self.leaving - used
        self.leaving -= gone
        return joining, gone

    def attach(self, joining: Iterable[Attachment]) -> None:
        for attachment in joining:
            self._attach(attachment)

    def detach(self, slots: Iterable[str]) -> None:
        for slot in slots:
            self._trunk.detach(slot)
            with self._guard:
                # It was attached after it had been told to leave.
                self._slots.pop(slot, None)

    def end(self) -> Sequence[Attachment]:
        """Return whom nobody will attach any more."""
        joining, self._joining = self._joining, deque()
        return joining

    def _attach(self, attachment: Attachment) -> None:
        if not attachment.done.set_running_or_notify_cancel():
            return
        virtual_tokens = 0
        try:
            if isinstance(attachment.adapter, PromptAdapter):
                self._trunk.attach_prompt(attachment.slot, attachment.adapter)
                virtual_tokens = self._trunk.new_cache(adapter=attachment.slot).length
            else:
                self._trunk.attach(attachment.slot, attachment.adapter)
        except Exception as error:
            attachment.done.set_exception(error)
            return
        with self._guard:
            self._slots[attachment.slot] = virtual_tokens
        attachment.done.set_result(None)


def refuse(attachments: Iterable[Attachment]) -> None:
    """Tell whoever waits for them that the loop has ended."""
    for attachment in attachments:
        if attachment.done.set_running_or_notify_cancel():
            attachment.done.set_exception(EngineUnavailable())
