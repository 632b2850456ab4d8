"""One step of generation: a packed forward pass, and a token for each sequence."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worker.generation.request import GenerationFailed, Piece
from worker.generation.sequence import Owner, SequenceState, Share
from worker.trunk.batch import pack
from worker.trunk.trunk import Trunk

logger = logging.getLogger(__name__)

Outcome = Piece | GenerationFailed | None


def plan_step(running: Sequence[SequenceState[Owner]], prefill_tokens: int) -> list[Share[Owner]]:
    """Return what each sequence puts into the next step; the first admitted prefills first.

    Args:
        prefill_tokens: tokens of prompts that one step takes at most, so that long prompts do not
            hold up the sequences that generate already.
    """
    shares = []
    for sequence in running:
        if not sequence.is_in_prompt:
            shares.append(sequence.share(1))
        elif prefill_tokens > 0:
            share = sequence.share(prefill_tokens)
            prefill_tokens -= len(share.rows.token_ids)
            shares.append(share)
    # Neighbours that share an adapter are one range of rows, which needs no gathering.
    return sorted(shares, key=lambda share: share.rows.adapter or "")


def run_step(
    trunk: Trunk, shares: Sequence[Share[Owner]]
) -> Iterator[tuple[Share[Owner], Outcome]]:
    """Run one step and yield what it means for each sequence.

    A step that fails is run again with each sequence alone, so that only those fail that are
    the reason.
    """
    try:
        logits = _forward(trunk, shares)
    except Exception:
        logger.exception("a step of %d sequences failed", len(shares))
        for share in shares:
            share.sequence.rewind(share)
        if len(shares) == 1:
            yield shares[0], GenerationFailed()
            return
        for share in shares:
            yield from run_step(trunk, [share])
        return
    for share, rows in zip(shares, logits, strict=True):
        yield share, _advance(share, rows)


def _forward(trunk: Trunk, shares: Sequence[Share[Owner]]) -> tuple[Tensor, ...]:
    """Run the model once and return each share's logits, [wanted, vocab] float32."""
    hidden = trunk.hidden(pack([share.rows for share in shares], trunk.device))
    wanted: list[int] = []
    end = 0
    for share in shares:
        end += len(share.rows.token_ids)
        wanted.extend(range(end - share.wanted, end))
    return torch.split(trunk.logits(hidden[wanted]), [share.wanted for share in shares])


def _advance(share: Share[Owner], logits: Tensor) -> Outcome:
    try:
        return share.sequence.advance(share, logits)
    except Exception:
        logger.exception("a sequence failed")
        return GenerationFailed()
