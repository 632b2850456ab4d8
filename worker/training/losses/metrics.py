"""What losses measure besides their value: rows by name, whose mean over a batch is a metric."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def mean_metrics(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each metric over all rows of all parts, however a batch was cut up.

    Args:
        parts: of each micro-batch, its metrics by name, each [rows] with rows of its own number.
            One that has no row anywhere is left out.
    """
    rows: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, values in part.items():
            rows.setdefault(name, []).append(values)
    joined = {name: torch.cat(values) for name, values in rows.items()}
    means = {name: values.mean() for name, values in joined.items() if values.numel()}
    # One transfer from the device for all of them.
    found = torch.stack(list(means.values())).tolist() if means else []
    return dict(zip(means, found, strict=True))
