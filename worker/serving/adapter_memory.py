"""The weights of adapters in memory, bounded in number and in bytes."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.domain.errors import Unavailable
from worker.serving.served_adapters import MixedAdapter, num_bytes

logger = logging.getLogger(__name__)


class AdapterMemory:
    """Weights by the names of their adapters, the least recently used of which make room.

    Args:
        max_adapters: how many there may be.
        max_bytes: how much memory they may take together.
        is_idle: says of a name whether it may make room now.
        leave: called with a name before its weights go.
    """

    def __init__(
        self,
        max_adapters: int,
        max_bytes: int,
        is_idle: Callable[[str], bool],
        leave: Callable[[str], None],
    ) -> None:
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._is_idle = is_idle
        self._leave = leave
        self._held: OrderedDict[str, _Held] = OrderedDict()  # Last used, last in order.
        self.bytes = 0

    def __contains__(self, name: object) -> bool:
        return name in self._held

    @property
    def names(self) -> list[str]:
        """Who is in memory, the last used last."""
        return list(self._held)

    def get(self, name: str) -> MixedAdapter:
        """Return weights, as those that were used last. Raises: KeyError."""
        self._held.move_to_end(name)
        return self._held[name].weights

    def put(self, name: str, weights: MixedAdapter) -> None:
        """Keep weights that are not there yet.

        Raises:
            Unavailable: every place is taken by an adapter in use.
        """
        held = _Held(weights, num_bytes(weights))
        while self._held and (
            len(self._held) >= self._max_adapters or self.bytes + held.bytes > self._max_bytes
        ):
            victim = next((one for one in self._held if self._is_idle(one)), None)
            if victim is None:
                raise Unavailable("every adapter in memory is in use; try again")
            logger.info("dropped adapter %s from memory to make room", victim)
            self.drop(victim)
        self._held[name] = held
        self.bytes += held.bytes

    def drop(self, name: str) -> None:
        """Let weights go; those that are not there are no error."""
        self._leave(name)
        if (held := self._held.pop(name, None)) is not None:
            self.bytes -= held.bytes


@dataclass(frozen=True, slots=True)
class _Held:
    weights: MixedAdapter
    bytes: int
