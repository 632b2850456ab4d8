"""Learnt prompts: what comes before the first token of each sequence of an adapter.

As keys and values it costs a sequence nothing but its place, and sequences with and without a
prompt share a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PromptAdapter:
    """A prompt of virtual tokens, in one of two forms.

    Attributes:
        embeddings: [virtual tokens, hidden], from which the keys and values are computed.
        past: keys and values of each layer, [1, kv_heads, virtual tokens, head_dim] each.
    """

    embeddings: Tensor | None = None
    past: Sequence[tuple[Tensor, Tensor]] | None = None
