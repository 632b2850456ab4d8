"""Named entities: one counts as found if its start, end and label are all right."""

from collections.abc import Collection, Sequence

import numpy as np

from worker.evaluation.measure import ClassScores, Draws, Floats, Scored, Scorer, sums
from worker.evaluation.precision import from_counts

Entity = tuple[int, int, str]
"""Start, end (exclusive), label; in tokens or in characters, if the same on both sides."""


def score(
    truths: Sequence[Collection[Entity]], predictions: Sequence[Collection[Entity]]
) -> Scored:
    """Score the entities predicted in each row; precision, recall and F1 over all entities."""
    pairs = [(set(true), set(found)) for true, found in zip(truths, predictions, strict=True)]
    outcomes = np.array(
        [[len(true & found), len(found - true), len(true - found)] for true, found in pairs],
        np.float64,
    ).reshape(-1, 3)

    def score_draws(draws: Draws) -> dict[str, Floats]:
        scores = from_counts(*sums(draws, outcomes).T)
        return {f"entity_{name}": each for name, each in scores._asdict().items()}

    return Scored(len(pairs), (Scorer(score_draws),), per_class=_per_label(pairs))


def entities_of_tags(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that BIO tags mark, bounds in tokens.

    As in the CoNLL evaluation, an `I-` that continues nothing starts an entity.
    """
    entities: list[Entity] = []
    start, label = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if label and (prefix != "I" or name != label):
            entities.append((start, place, label))
            label = ""
        if not label and prefix in ("B", "I"):
            start, label = place, name
    return entities


def _per_label(pairs: Sequence[tuple[set[Entity], set[Entity]]]) -> tuple[ClassScores, ...]:
    labels = sorted({label for pair in pairs for _, _, label in pair[0] | pair[1]})
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((3, len(labels)))
    for true, found in pairs:
        for outcome, entities in enumerate((true & found, found - true, true - found)):
            for _, _, label in entities:
                counts[outcome, place[label]] += 1
    scores = from_counts(*counts)
    return tuple(
        ClassScores(label, float(precision), float(recall), float(f1), int(rows))
        for label, precision, recall, f1, rows in zip(
            labels, *scores, counts[0] + counts[2], strict=True
        )
    )
