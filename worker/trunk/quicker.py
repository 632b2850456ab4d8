"""Quicker ways for a trunk to compute where there are no gradients, taken only if they agree."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from worker.trunk import half, int8
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.cache import SequenceCache
from worker.trunk.decoder import Decoder, find_decoder
from worker.trunk.device_memory import free_bytes
from worker.trunk.half import DoesNotFitError, HalfProduct
from worker.trunk.int8 import Int8Product
from worker.trunk.int8_quality import LIMIT_NATS, SAMPLE, divergence_nats
from worker.trunk.products import MakeProducts, Products
from worker.trunk.trunk import Trunk

_SHARE_OF_FREE = 0.5

logger = logging.getLogger(__name__)


def use_decoder(trunk: Trunk) -> bool:
    """Compute by the fast forward pass from now on, if the model has one that agrees.

    It takes the place of transformers' own. Return whether one is used.
    """
    decoder = find_decoder(trunk.model)
    trunk.decoder = decoder if decoder is not None and _agrees(trunk, decoder) else None
    return trunk.decoder is not None


def use_half(trunk: Trunk, free: Callable[[torch.device], int] = free_bytes) -> bool:
    """Compute with weights of 16 bits from now on, where those hold them.

    The weights are copied as they are now: nothing may change them any more. Return whether 16
    bits are used; else the trunk is as it was.

    Args:
        free: memory of a device that nothing uses, in bytes; the copies take half of it at most.
    """
    if not _can_pack(trunk) or not half.is_available():
        return False
    matrices = [weight for weight in trunk.model.parameters() if weight.dim() == 2]
    if half.held_bytes(matrices) > _SHARE_OF_FREE * free(trunk.device):
        logger.info("%s is read in 32 bits: too little memory is free", trunk.directory.name)
        return False
    try:
        decoder, head = _packed(trunk, HalfProduct)
    except DoesNotFitError:
        return False
    if not _agrees(trunk, decoder, head):
        return False
    trunk.decoder, trunk.packed_head, trunk.packing = decoder, head, "half"
    logger.info("%s is read in 16 bits, which hold its weights", trunk.directory.name)
    return True


def use_int8(trunk: Trunk) -> bool:
    """Compute the base model in 8 bits from now on, where that is possible and good enough.

    The weights are copied as they are now; adapters stay as they are. What stands in the way is
    logged: another architecture, device or number format, or a divergence from the model's own
    answers of more than `LIMIT_NATS`. Return whether 8 bits are used.
    """
    name = trunk.directory.name
    if not _can_pack(trunk) or not int8.is_available():
        logger.warning(
            "%s is not computed in 8 bits: that is for the Llama family, in float32 on a CPU", name
        )
        return False
    return _try_int8(trunk)


@torch.no_grad()
def _try_int8(trunk: Trunk) -> bool:
    ids = _sample_ids(trunk)
    batch = pack([SequenceRows(ids)], trunk.device)
    expected = trunk.logits(trunk.hidden(batch))
    former = trunk.decoder, trunk.packed_head
    trunk.decoder, trunk.packed_head = _packed(trunk, Int8Product)
    divergence = divergence_nats(expected, trunk.logits(trunk.hidden(batch)))
    if divergence <= LIMIT_NATS:
        logger.info("%s in 8 bits: %.4f nats a token", trunk.directory.name, divergence)
        trunk.packing = "int8"
        return True
    trunk.decoder, trunk.packed_head = former
    logger.warning(
        "%s is not computed in 8 bits: its answers would diverge by %.4f nats a token, and "
        "%.2f is the limit",
        trunk.directory.name,
        divergence,
        LIMIT_NATS,
    )
    return False


def _can_pack(trunk: Trunk) -> bool:
    is_float32_on_cpu = trunk.device.type == "cpu" and trunk.dtype is torch.float32
    return trunk.decoder is not None and is_float32_on_cpu


def _packed(trunk: Trunk, make: MakeProducts) -> tuple[Decoder, Products]:
    decoder = find_decoder(trunk.model)
    assert decoder is not None, "a trunk with a decoder is of a family that has one"
    decoder.pack(make)
    return decoder, make([trunk.head_weight], [None])


def _sample_ids(trunk: Trunk) -> list[int]:
    """Return a real text: on tokens without a meaning float32 itself is off by a lot."""
    ids = trunk.tokenizer(SAMPLE, add_special_tokens=False).input_ids
    # A tokenizer may know more than its model.
    return [index % len(trunk.head_weight) for index in ids]


@torch.no_grad()
def _agrees(trunk: Trunk, decoder: Decoder, head: Products | None = None) -> bool:
    """Compare with transformers' own forward pass: two sequences, one of them in two parts."""
    ids = _sample_ids(trunk)[:16]
    other = ids[:5]
    former = trunk.decoder, trunk.packed_head
    trunk.decoder = trunk.packed_head = None
    try:
        expected = trunk.hidden(pack([SequenceRows(ids), SequenceRows(other)], trunk.device))
        logits = trunk.logits(expected)
        trunk.decoder = decoder
        cache = SequenceCache(trunk.num_layers)
        begun = trunk.hidden(pack([SequenceRows(ids[:9], None, cache)], trunk.device))
        rest = [SequenceRows(ids[9:-1], None, cache), SequenceRows(other)]
        middle = trunk.hidden(pack(rest, trunk.device))
        tail = trunk.hidden(pack([SequenceRows(ids[-1:], None, cache)], trunk.device))
    except (RuntimeError, AttributeError, TypeError):
        return False
    finally:
        trunk.decoder, trunk.packed_head = former
    split = len(middle) - len(other)
    found = torch.cat((begun, middle[:split], tail, middle[split:]))
    tolerance = 1e-4 if trunk.dtype is torch.float32 else 0.02
    is_head_right = head is None or _error(head(expected), logits) < tolerance
    return is_head_right and _error(found, expected) < tolerance


def _error(found: Tensor, expected: Tensor) -> float:
    """Return how far rows are from what they should be, as a share of that."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
