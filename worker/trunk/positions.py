"""Up to which length the positions of a sequence do not depend on what else is in its batch."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig


def longest_apart(config: PretrainedConfig) -> int | None:
    """Return how long every sequence of a batch may be, so that none turns others differently.

    Two kinds of rotary embeddings choose their frequencies by the longest sequence of a batch:
    beyond the length that the model was made for, all its mates, and what they have cached, are
    turned otherwise than before. None: there is no such length.
    """
    told: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    # Some models have other positions in each kind of layer.
    kinds = [one for one in told.values() if isinstance(one, Mapping)] or [told]
    lengths = [length for one in kinds if (length := _length(one, config)) is not None]
    return min(lengths, default=None)


def _length(told: Mapping[str, Any], config: Any) -> int | None:
    kind = told.get("rope_type") or ""
    if kind == "longrope":
        return int(told.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(config.max_position_embeddings) if "dynamic" in kind else None
