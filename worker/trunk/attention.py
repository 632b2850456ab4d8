"""Attention over a packed batch: every segment sees itself and its own cache, nothing else.

Registered with transformers under `ATTENTION_NAME` and deliberately not among its mask functions:
transformers then builds no mask. The segments arrive through the model's keyword arguments.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.trunk.batch import Segment

ATTENTION_NAME = "tunesmith_packed"


class UnsupportedAttention(Exception):
    """The model attends in a way that packed batches cannot express."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each segment.

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim]; `heads` is a multiple of `kv_heads`.
        value: like `key`.
        attention_mask: None, since no mask function is registered.

    Returns:
        [1, tokens, heads, head_dim] and None in the place of attention weights.

    Raises:
        UnsupportedAttention: the model needs logit soft-capping, attention sinks or a mask.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise UnsupportedAttention("soft-capped logits, attention sinks and masks")
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttention("attention that is not causal")
    layer_idx: Any = getattr(module, "layer_idx", None)
    outputs: list[Tensor] = []
    for segment in segments:
        rows = slice(segment.start, segment.end)
        keys, values = key[:, :, rows], value[:, :, rows]
        if segment.cache is not None:
            keys, values = segment.cache.append(layer_idx, keys, values)
        attended = attend(query[:, :, rows], keys, values, scaling, sliding_window)
        outputs.append(attended.transpose(1, 2))
    # One segment's output needs no copy.
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def attend(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Attend from the last `query.shape[2]` of the positions that `keys` and `values` hold.

    Shapes are those of `packed_attention`; returns [1, heads, tokens, head_dim].
    """
    new, total = query.shape[2], keys.shape[2]
    if window is not None and new == 1:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    mask = None
    if new > 1 and (new < total or (window is not None and window < total)):
        mask = _causal_mask(new, total, window, query.device)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=new > 1 and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def _causal_mask(new: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """Return [new, total] bool, true where a new token may look."""
    positions = torch.arange(total, device=device)
    distance = positions[total - new :, None] - positions[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention)
