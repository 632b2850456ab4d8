"""Held-out pairs of texts, of each of which a model has predicted both vectors, as rankings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.tasks import Judged

# The more held-out pairs, the more candidates for each: beyond these both are cut.
MAX_RANKED = 2000


def ranked(judged: Judged) -> Judged:
    """Return the first examples, as many as are ranked."""
    return Judged(
        judged.examples[:MAX_RANKED], judged.predictions[:MAX_RANKED], judged.losses[:MAX_RANKED]
    )


class Ranking:
    """How near the different positives of held-out pairs are to the anchors.

    Attributes:
        similarities: [anchors, candidates] float32; an anchor is no candidate for itself.
        is_relevant: [anchors, candidates] bool.
    """

    def __init__(self, judged: Judged) -> None:
        pairs = [example.features["texts"][:2] for example in judged.examples]
        places: dict[Any, int] = {}
        for _, positive in pairs:
            places.setdefault(positive, len(places))
        vectors = _unit(np.stack(judged.predictions))
        candidates = np.empty((len(places), vectors.shape[2]), np.float32)
        self._texts = [""] * len(places)
        belonging: dict[Any, set[int]] = {}
        for (anchor, positive), vector, example in zip(
            pairs, vectors[:, 1], judged.examples, strict=True
        ):
            place = places[positive]
            candidates[place] = vector
            self._texts[place] = example.target
            belonging.setdefault(anchor, set()).add(place)
        self.similarities = vectors[:, 0] @ candidates.T
        self.is_relevant = np.zeros(self.similarities.shape, np.bool_)
        for row, (anchor, _) in enumerate(pairs):
            self.is_relevant[row, list(belonging[anchor])] = True
            own = places.get(anchor)
            if own is not None and not self.is_relevant[row, own]:
                self.similarities[row, own] = -2.0

    def nearest(self) -> list[str]:
        """Return the text that is nearest to each anchor."""
        return [self._texts[place] for place in self.similarities.argmax(axis=1)]


def cosines(judged: Judged) -> list[float]:
    """Return how near both texts of each held-out pair are."""
    vectors = _unit(np.stack(judged.predictions))
    found: list[float] = (vectors[:, 0] * vectors[:, 1]).sum(axis=1).tolist()
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors [..., width] with the length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return units
