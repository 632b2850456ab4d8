"""Generating many sequences to their ends, in the thread that asks for them."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.generation.request import FinishReason, GenerationFailed, GenerationRequest
from worker.generation.sequence import SequenceState
from worker.generation.step import plan_step, run_step
from worker.generation.vocabulary import Vocabulary
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.cache import SequenceCache
from worker.trunk.trunk import Trunk

MAX_RUNNING = 64
PREFILL_TOKENS_PER_STEP = 1024


@dataclass(frozen=True, slots=True)
class Generated:
    """One whole answer.

    Attributes:
        token_ids: all that were sampled, the one that ends the answer included.
        text: whole characters, without special tokens.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@torch.no_grad()
def generate(
    trunk: Trunk,
    vocabulary: Vocabulary,
    requests: Sequence[GenerationRequest],
    *,
    before_step: Callable[[], None] = lambda: None,
    max_running: int = MAX_RUNNING,
) -> list[Generated]:
    """Return an answer to each request, in the same order.

    The steps are those of the engine: sequences share them, and one that ends makes room for the
    next. A prompt that is asked more than once is read once. The same requests give the same
    answers, where each has a seed.

    Args:
        trunk: with the adapters attached that requests name.
        before_step: called before each step; may raise to end it all.
        max_running: sequences that share a step at most.

    Raises:
        GenerationFailed: a sequence could not be generated.
    """
    texts: list[list[str]] = [[] for _ in requests]
    reasons: dict[int, FinishReason] = {}
    # A sequence's owner is its place among the requests.
    sequences: list[SequenceState[int]] = []
    shared = _shared_prompts(trunk, requests, before_step)
    for place, request in enumerate(requests):
        prompt = shared.get((request.adapter, request.prompt_ids))
        cache = trunk.new_cache() if prompt is None else prompt.copy()
        sequences.append(SequenceState(request, place, place, vocabulary))
        sequences[-1].open(cache, cache.length)
    waiting, running = deque(sequences), list[SequenceState[int]]()
    while waiting or running:
        before_step()
        while waiting and len(running) < max_running:
            running.append(waiting.popleft())
        for share, piece in run_step(trunk, plan_step(running, PREFILL_TOKENS_PER_STEP)):
            if piece is None:
                continue
            if isinstance(piece, GenerationFailed):
                raise piece
            place = share.sequence.owner
            texts[place].append(piece.text)
            if piece.finish_reason is not None:
                reasons[place] = piece.finish_reason
        running = [one for one in running if one.owner not in reasons]
    return [
        Generated(tuple(one.sampled_ids), "".join(texts[place]), reasons[place])
        for place, one in enumerate(sequences)
    ]


def _shared_prompts(
    trunk: Trunk, requests: Sequence[GenerationRequest], before_step: Callable[[], None]
) -> dict[tuple[str | None, tuple[int, ...]], SequenceCache]:
    """Return what prompts that several requests have in common leave behind, all but a last token.

    That token's row tells what follows, and so goes through the model with each sequence.
    """
    counts = Counter((request.adapter, request.prompt_ids) for request in requests)
    caches: dict[tuple[str | None, tuple[int, ...]], SequenceCache] = {}
    together: list[SequenceRows] = []
    for (adapter, prompt_ids), count in counts.items():
        if count == 1 or len(prompt_ids) == 1:
            continue
        caches[adapter, prompt_ids] = cache = trunk.new_cache()
        together.append(SequenceRows(prompt_ids[:-1], adapter, cache))
        if sum(len(rows.token_ids) for rows in together) >= PREFILL_TOKENS_PER_STEP:
            before_step()
            trunk.hidden(pack(together, trunk.device))
            together = []
    if together:
        before_step()
        trunk.hidden(pack(together, trunk.device))
    return caches
