"""The weighted mean of what several LoRA adapters change, as one adapter."""

from collections.abc import Sequence

import torch

from app.domain.job_spec import LoraSpec
from worker.trunk.lora import LoraAdapter, LoraPair


def weighted_mean(adapters: Sequence[LoraAdapter], weights: Sequence[float]) -> LoraAdapter:
    """Return an adapter whose update of every layer is the weighted mean of the adapters' own.

    A mean of the matrices would be another thing: the product of two means is not the mean of
    the products. So the matrices are laid side by side, as `peft` does by the combination type
    `cat`: the rank is the sum of the ranks, and nothing is lost. An adapter that leaves a layer
    as it is counts there as an update of zero.
    """
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.weights)
    rank = sum(adapter.spec.r for adapter in adapters)
    targets = sorted({name for adapter in adapters for name in adapter.spec.target_modules})
    merged: dict[str, LoraPair] = {}
    for path in paths:
        pairs = [
            (adapter.weights[path], adapter.scaling * weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if path in adapter.weights
        ]
        merged[path] = LoraPair(
            torch.cat([pair.a for pair, _ in pairs]),
            torch.cat([pair.b * factor for pair, factor in pairs], dim=1),
        )
    return LoraAdapter(LoraSpec(r=rank, alpha=rank, target_modules=tuple(targets)), merged)
