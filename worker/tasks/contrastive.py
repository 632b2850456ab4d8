"""The contrastive loss over the texts of a batch."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

# What cosines are multiplied by before the softmax, as sentence-transformers does by default.
SCALE = 20.0

NONE = -1


def contrastive_losses(vectors: Tensor, texts: Tensor) -> Tensor:
    """Return the loss of each anchor [examples] float32.

    The candidates are all positives and all negatives of the batch. One that is a positive of an
    equal anchor, or the anchor itself, is left out, as it is no negative.

    Args:
        vectors: [texts, width] float32, each different text once.
        texts: [examples, 2 or 3] int64, places of anchor, positive and negative; -1 for none.
    """
    anchors, positives = texts[:, 0], texts[:, 1]
    negatives = texts[:, 2:].flatten()
    candidates = torch.cat([positives, negatives[negatives != NONE]])
    is_alike = (anchors[:, None] == anchors).float()
    belongs = (is_alike @ (positives[:, None] == candidates).float()) > 0
    belongs |= anchors[:, None] == candidates
    own = torch.arange(len(texts), device=texts.device)
    belongs[own, own] = False
    directions = normalize(vectors, dim=1)
    cosines = directions[anchors] @ directions[candidates].T
    return cross_entropy(
        (SCALE * cosines).masked_fill(belongs, float("-inf")), own, reduction="none"
    )
