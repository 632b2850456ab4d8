"""The memory for keys and values of one base model: a fixed number of tokens.

Sequences reserve what they allocate before they do. What no sequence needs keeps what others have
left behind, so that a prompt that begins like one before need not be computed again.
"""

from collections.abc import Sequence

import torch

from worker.serving.prefix_store import Prefix, PrefixStore, as_token_ids, common_length
from worker.serving.ticket import Ticket
from worker.trunk.cache import SequenceCache
from worker.trunk.device_memory import machine_bytes
from worker.trunk.trunk import Trunk

# To wait for another sequence's prompt takes a step or more; it must save something.
_WORTH_WAITING_TOKENS = 16

_CPU_SHARE, _GPU_SHARE = 4, 2


def default_kv_tokens(trunk: Trunk, max_running: int, context_length: int) -> int:
    """Return how many tokens all sequences and prefixes of a base model may hold together.

    As many as sequences in full length can run at once; at most what fits a quarter of the
    machine's memory, or half of what is free on a GPU once the weights are there. One sequence
    in full length always fits.
    """
    if trunk.device.type == "cuda":
        memory_bytes = torch.cuda.mem_get_info(trunk.device)[0] // _GPU_SHARE
    else:
        memory_bytes = machine_bytes() // _CPU_SHARE
    affordable = memory_bytes // trunk.cache_bytes_per_token
    return max(context_length, min(max_running * context_length, affordable))


class CacheMemory:
    """What is reserved, and what is stored. The loop's thread uses it alone; others may count.

    Attributes:
        tokens: how many there can be.
        reserved_tokens: of running sequences.
        prefix_hits: sequences that began with what others had left or were computing.
        reused_tokens: tokens that were copied for them.
    """

    def __init__(self, trunk: Trunk, tokens: int) -> None:
        self.tokens = tokens
        self.reserved_tokens = self.prefix_hits = self.reused_tokens = 0
        self._trunk = trunk
        self._store = PrefixStore()

    @property
    def stored_tokens(self) -> int:
        return self._store.capacity

    def reserve(self, tokens: int, headroom: int = 0) -> bool:
        """Reserve memory, at the cost of stored prefixes, and say whether there was enough.

        Args:
            headroom: tokens that must be left for what runs already.
        """
        if self.reserved_tokens + tokens + headroom > self.tokens:
            return False
        while self.reserved_tokens + tokens + self._store.capacity > self.tokens:
            self._store.evict()
        self.reserved_tokens += tokens
        return True

    def release(self, ticket: Ticket, is_kept: bool) -> None:
        """Take back what a sequence has reserved.

        Args:
            is_kept: whether what it has computed is stored.
        """
        self.reserved_tokens -= ticket.capacity
        if ticket.sequence.is_open:
            held = ticket.sequence.held_tokens
            cache = ticket.sequence.close()
            if is_kept and held:
                token_ids = as_token_ids(ticket.sequence.token_ids[:held])
                self._store.add(Prefix(ticket.key, token_ids, cache, ticket.capacity))
        ticket.capacity = 0

    def open(self, ticket: Ticket, running: Sequence[Ticket]) -> bool:
        """Give a sequence its cache, with the longest beginning that its project has computed.

        Returns:
            False, if another sequence is about to compute more of its prompt: it had better wait.
        """
        wanted = as_token_ids(ticket.sequence.token_ids[:-1])
        source: Prefix | Ticket | None = None
        held = coming = 0
        # The scores of a prompt come from computing all of it.
        if not ticket.request.has_prompt_logprobs or ticket.sequence.sampled_ids:
            source, held = self._store.longest(ticket.key, wanted)
            for other in running:
                if not other.sequence.is_open or other.key != ticket.key:
                    continue
                common = common_length(other.prompt_ids, wanted)
                if other.sequence.is_in_prompt:
                    coming = max(coming, common)
                available = min(common, other.sequence.held_tokens)
                if available > held:
                    source, held = other, available
        if coming >= held + _WORTH_WAITING_TOKENS:
            return False
        ticket.sequence.open(self._copied(ticket, source, held), held)
        self.prefix_hits += held > 0
        self.reused_tokens += held
        return True

    def forget_slot(self, slot: str) -> None:
        """Drop what was computed through an adapter that is leaving."""
        self._store.forget_slot(slot)

    def clear(self) -> None:
        """Drop everything that is stored."""
        self._store.clear()

    def _copied(self, ticket: Ticket, source: Prefix | Ticket | None, held: int) -> SequenceCache:
        if isinstance(source, Ticket):
            return source.sequence.copied_cache(held, ticket.capacity)
        if source is not None:
            return source.cache.copy(ticket.capacity, ticket.learnt_prompt_tokens + held)
        return self._trunk.new_cache(ticket.capacity, ticket.request.adapter)
